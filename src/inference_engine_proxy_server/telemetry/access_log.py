"""The access log: one line for each finished request."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Container
from functools import lru_cache

import msgspec

from inference_engine_proxy_server.telemetry.finished_requests import Batch, FinishedRequests
from inference_engine_proxy_server.telemetry.line_writer import LineWriter
from inference_engine_proxy_server.telemetry.request_record import RequestRecord

__all__ = ["AccessLog", "tokens_per_second"]

_FLUSH_SECONDS = 0.2  # longest delay of a line; a write for each line would cost a system call each
_FLUSH_LINES = 512
_NAME_CHARACTERS = 100  # of a model
_REMEMBERED = 1024  # kinds of requests
_PROBES = frozenset(f"/{name}{end}" for name in ("health", "livez", "readyz", "metrics") for end in ("", "/"))

_MILLISECONDS = [f".{number:03d}Z" for number in range(1000)]

_encode = msgspec.json.Encoder().encode


class AccessLog:
    """Writes the lines. None ever has a body, a query or a header field, which may contain secrets.

    Args:
        finished: the requests.
        writer: writes the lines.
        log_format: ``text`` or ``json``.
        has_probes: whether probes of health and metrics have lines. Those that are rejected (4xx) always have.
    """

    def __init__(
        self, finished: FinishedRequests, writer: LineWriter, log_format: str, *, has_probes: bool = True
    ) -> None:
        self._finished = finished
        self._writer = writer
        self._skipped_paths: Container[str] = () if has_probes else _PROBES
        self._line_of = self._json if log_format == "json" else self._text
        self._lines: list[str] = []
        self._second = 0
        self._second_text = ""
        self._kinds: dict[tuple[object, ...], str] = {}  # the words that requests of one kind share
        finished.subscribe(self._add)

    def flush(self) -> None:
        """Hand the lines of all requests that have ended to the writer."""
        self._finished.hand_over()
        self._write()

    def _write(self) -> None:
        if self._lines:
            lines, self._lines = self._lines, []
            self._writer.put(lines)

    async def run(self) -> None:
        """Write lines periodically until cancelled, then the rest."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_SECONDS)
                self.flush()
        finally:
            self.flush()
            await self._writer.close()

    def _add(self, batch: Batch) -> None:
        lines, line_of, skipped = self._lines, self._line_of, self._skipped_paths
        for record, ended_at in zip(*batch, strict=True):
            if record.path in skipped and record.backend is None and _is_probe(record):
                continue
            second = int(ended_at)
            if second != self._second:  # formatted once a second, not once a line
                self._second = second
                self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            lines.append(line_of(self._second_text + _MILLISECONDS[int((ended_at - second) * 1000)], record))
        if len(lines) >= _FLUSH_LINES:
            self._write()

    def _text(self, at: str, record: RequestRecord) -> str:
        key = (record.method, record.path, record.status, record.outcome, record.backend, record.model)
        kind = self._kinds.get(key) or self._remember(key, record)
        first_byte = record.first_byte_seconds
        first = "-" if first_byte is None else f"{first_byte:.4f}"
        tail = ""
        if record.prompt_tokens is not None or record.output_tokens is not None:
            tail = _token_words(record)
        if record.termination != "complete" or record.attempts > 1 or record.queue_seconds or record.alias:
            tail += _rare_words(record)
        return (
            f"{at} {record.client} {kind} first_byte={first} seconds={record.seconds:.4f} "
            f"bytes={record.sent_bytes} id={record.request_id}{tail}"
        )

    def _remember(self, key: tuple[object, ...], record: RequestRecord) -> str:
        kind = (
            f'"{record.method} {record.path}" {record.status} {record.outcome} backend={record.backend or "-"} '
            f"model={_quoted(record.model) if record.model else '-'}"
        )
        if len(record.path) + len(record.model or "") <= _NAME_CHARACTERS:
            if len(self._kinds) >= _REMEMBERED:
                self._kinds.clear()
            self._kinds[key] = kind
        return kind

    def _json(self, at: str, record: RequestRecord) -> str:
        speed = tokens_per_second(record)
        speed_text = "null" if speed is None else f"{speed:.1f}"
        if len(record.model or "") > _NAME_CHARACTERS or len(record.alias or "") > _NAME_CHARACTERS:
            record = _shortened(record)
        return f'{{"time":"{at}",{_members(record)},"tokens_per_second":{speed_text}}}'


def tokens_per_second(record: RequestRecord) -> float | None:
    """Tokens of the answer in a second: of a stream from its first event to its end, else since the time in the queue.

    ``None`` if the reply does not report its tokens, or ends at once.
    """
    tokens, first_byte = record.output_tokens, record.first_byte_seconds
    if not tokens or first_byte is None:
        return None
    if record.is_stream:
        tokens, seconds = tokens - 1, record.seconds - first_byte
    else:
        seconds = record.seconds - record.queue_seconds
    return tokens / seconds if tokens and seconds > 0 else None


def _members(record: RequestRecord) -> str:
    """The members of a JSON object, in ASCII, because standard output may have an encoding without other characters."""
    try:
        members = _encode(record)[1:-1]
    except UnicodeEncodeError:  # half of a surrogate pair, in the name of a model
        members = b"\xff"
    return members.decode() if members.isascii() else json.dumps(msgspec.structs.asdict(record))[1:-1]


def _shortened(record: RequestRecord) -> RequestRecord:
    names = {name: getattr(record, name) for name in ("model", "alias")}
    return msgspec.structs.replace(
        record, **{name: value and value[:_NAME_CHARACTERS] for name, value in names.items()}
    )


def _token_words(record: RequestRecord) -> str:
    """What the reply reports of its tokens."""
    prompt, cached, output = record.prompt_tokens, record.cached_tokens, record.output_tokens
    words = "" if prompt is None else f" in={prompt}" if cached is None else f" in={prompt} cached={cached}"
    if output is None:
        return words
    speed = tokens_per_second(record)
    return f"{words} out={output}" if speed is None else f"{words} out={output} tokens_per_second={speed:.1f}"


def _rare_words(record: RequestRecord) -> str:
    """The words of a line that most lines do not have."""
    words = f" queue={record.queue_seconds:.4f}" if record.queue_seconds else ""
    if record.attempts > 1:
        words += f" attempts={record.attempts}"
    if record.termination not in ("complete", record.outcome.value):
        words += f" reason={record.termination}"
    if record.resumes:
        words += f" resumes={record.resumes}"
    return f"{words} alias={_quoted(record.alias)}" if record.alias else words


def _is_probe(record: RequestRecord) -> bool:
    """Whether a request for one of ``_PROBES`` is an ordinary probe, and was not rejected."""
    return record.method in ("GET", "HEAD") and not 400 <= record.status < 500


@lru_cache(maxsize=256)  # clients use few models
def _quoted(text: str) -> str:
    """``text`` from a client as one word of a line, quoted if necessary."""
    text = text[:_NAME_CHARACTERS]
    # ASCII only, as in JSON.
    plain = text.isascii() and text.isprintable() and " " not in text and '"' not in text
    return text if plain else json.dumps(text)
