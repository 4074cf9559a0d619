"""``inference-proxy doctor``: examines settings, machine and backends, and says what to change."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence

from inference_engine_proxy_server.cli.console import Subparsers, load, show
from inference_engine_proxy_server.config.base_urls import as_base_url
from inference_engine_proxy_server.config.sources import SettingsError
from inference_engine_proxy_server.doctor.examination import examine
from inference_engine_proxy_server.doctor.finding import Finding, Severity

__all__ = ["add_parser"]

_INDENT = " " * 9


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "doctor",
        help="examine settings, machine and backends, and say what to change",
        description="Exit code: 0 without errors and warnings, 1 with warnings, 2 with errors.",
    )
    parser.add_argument(
        "--through",
        metavar="URL",
        type=_base_url,
        help="also examine the way of clients to the running proxy, for example https://llm.example.com",
    )
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    try:
        loaded = load({}, backends_required=True, warn=None)
        findings, backends = examine(loaded, arguments.through)
    except SettingsError as error:
        findings, backends = [_invalid(line) for line in str(error).splitlines()], 0
    show(_as_json(findings) if arguments.json else _as_text(findings, backends))
    return 2 if _count(findings, Severity.ERROR) else 1 if _count(findings, Severity.WARNING) else 0


def _base_url(text: str) -> str:
    try:
        return as_base_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _invalid(line: str) -> Finding:
    return Finding("settings_invalid", Severity.ERROR, "settings", line, "Correct it; then the other checks can run.")


def _as_json(findings: Sequence[Finding]) -> str:
    return json.dumps({"findings": [dict(finding.as_json()) for finding in findings]}, indent=2)


def _as_text(findings: Sequence[Finding], backends: int) -> str:
    blocks = [
        "\n".join(
            (
                f"{finding.severity.value.upper():7}  {finding.subject}  [{finding.code}]",
                _wrapped(finding.problem),
                _wrapped(finding.remedy),
            )
        )
        for finding in findings
    ]
    counts = [(_count(findings, severity), severity.value) for severity in Severity]
    summary = ", ".join(f"{count} {word}{'s' if count != 1 else ''}" for count, word in counts)
    return "\n\n".join([*blocks, f"{backends} backends examined: {summary}."])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False)


def _count(findings: Sequence[Finding], severity: Severity) -> int:
    return sum(finding.severity is severity for finding in findings)
