"""Rewrites the events of a continuation, so that they continue an earlier stream."""

from __future__ import annotations

from abc import ABC, abstractmethod

from inference_engine_proxy_server.errors import StreamNotContinued
from inference_engine_proxy_server.resume.transcript import Transcript

__all__ = ["Seam"]


class Seam(ABC):
    """The place where one continuation joins its stream.

    The events keep the identity of the stream. Its beginning is not repeated, nor is the text with which some engines
    begin. Usage and timings include what was delivered before.

    Args:
        transcript: of the stream so far; it must have been read to its end.
        seconds: how long the stream had been generating.
    """

    def __init__(self, transcript: Transcript, seconds: float) -> None:
        self._echo = transcript.text
        self._has_text = bool(transcript.text)
        self._tokens = transcript.text_events
        self._milliseconds = 1000 * seconds

    @abstractmethod
    def rewrite(self, event: bytes) -> bytes:
        """``event`` as the client should receive it: any number of events.

        Raises:
            msgspec.DecodeError, UnicodeDecodeError: it is no event of the API.
            StreamNotContinued: it begins a new answer.
        """

    def _refuse_reasoning(self) -> None:
        """An engine that reasons after the delivered text does not continue that."""
        if self._has_text:
            raise StreamNotContinued("The backend begins a new answer instead of continuing the stream.")

    def _without_echo(self, text: str | None) -> str | None:
        if not text:
            return text
        echo, self._echo = self._echo, ""
        return text[len(echo) :] if echo and text.startswith(echo) else text
