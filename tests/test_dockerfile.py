"""The Dockerfile, and the locked versions in the image."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Collection
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from inference_engine_proxy_server.config.settings import Settings

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the final stage with its text on one line."""
    text = re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    pairs = [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines()) if name]
    final_stage = max(index for index, (name, _) in enumerate(pairs) if name == "FROM")
    return pairs[final_stage:]


def locked() -> dict[str, tuple[Requirement, list[str]]]:
    """Requirement and hashes of every locked package, by its name."""
    text = re.sub(r"^#.*\n", "", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    packages: dict[str, tuple[Requirement, list[str]]] = {}
    for line in re.sub(r"\\\n", "", text).splitlines():
        requirement, *hashes = line.split(" --hash=")
        parsed = Requirement(requirement.strip())
        packages[canonicalize_name(parsed.name)] = (parsed, [item.strip() for item in hashes])
    return packages


def applies(requirement: Requirement, extras: Collection[str] = ()) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def needed_by_the_project() -> list[Requirement]:
    """The dependencies, and those of tracing and shared state, which the image has, too."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [Requirement(text) for text in (*project["dependencies"], *optional["otel"], *optional["redis"])]


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_container_does_not_run_as_root() -> None:
    assert [text for name, text in instructions() if name == "USER"] == ["10001:10001"]


def test_container_listens_on_every_address_at_the_documented_port() -> None:
    environment = dict(item.split("=") for name, text in instructions() if name == "ENV" for item in text.split())
    assert environment["HOST"] == "0.0.0.0"  # noqa: S104
    assert environment["PORT"] == str(Settings.model_fields["port"].default)


def test_command_receives_signals_directly() -> None:
    commands = [json.loads(text) for name, text in instructions() if name == "CMD"]
    assert commands == [["inference-proxy", "serve"]]


def test_image_has_no_package_installer_of_its_own_and_compiles_nothing() -> None:
    assert "--without-pip" in DOCKERFILE
    assert "--only-binary :all:" in DOCKERFILE
    assert "apt" not in DOCKERFILE
    assert [name for name, _ in instructions() if name == "RUN"] == []


def test_every_dependency_is_locked_in_a_version_it_allows() -> None:
    packages = locked()
    for needed in needed_by_the_project():
        requirement, _ = packages[canonicalize_name(needed.name)]
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert pin.version in needed.specifier, needed


def test_lock_is_the_closure_of_the_dependencies_and_nothing_else() -> None:
    reached: set[tuple[str, frozenset[str]]] = set()
    waiting = [needed for needed in needed_by_the_project() if applies(needed)]
    while waiting:
        needed = waiting.pop()
        name = canonicalize_name(needed.name)
        reached_now = (name, frozenset(needed.extras))
        if reached_now not in reached:
            reached.add(reached_now)
            others = map(Requirement, requires(name) or [])
            waiting += [other for other in others if applies(other, needed.extras)]
    assert {name for name, (requirement, _) in locked().items() if applies(requirement)} == {
        name for name, _ in reached
    }


def test_every_locked_package_has_hashes_and_no_address() -> None:
    for requirement, hashes in locked().values():
        assert hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", item) for item in hashes), requirement
        assert requirement.url is None
    text = (ROOT / "requirements.txt").read_text()
    assert not re.search(r"https?:|file:|index-url|find-links|trusted-host", text)


def test_lock_file_has_the_command_that_renews_it() -> None:
    assert "uv pip compile pyproject.toml" in (ROOT / "requirements.txt").read_text().partition("\n\n")[0]


def test_build_context_leaves_secrets_and_models_out() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    copied = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert copied == {"LICENSE", "README.md", "pyproject.toml", "requirements.txt", "src"}
