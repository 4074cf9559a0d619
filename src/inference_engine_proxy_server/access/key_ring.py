"""The API keys that are valid now: those in the settings, and those in a file that is read again when it changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from inference_engine_proxy_server.config.api_keys import ApiKey, keys_by_digest
from inference_engine_proxy_server.config.file_watch import FileWatch
from inference_engine_proxy_server.config.key_file import KeyFileError, read_key_file
from inference_engine_proxy_server.telemetry.journal import Journal

__all__ = ["KeyRing"]

logger = logging.getLogger(__name__)


class KeyRing:
    """The keys, by the digests of their secrets.

    Args:
        fixed: the keys from the settings.
        file: contains more keys; ``None`` when there is no file.
        clock: seconds since the epoch.
        journal: notes that the file was read again.

    Attributes:
        keys: by digest; replaced by a new object whenever anything changes.

    Raises:
        KeyFileError: the file cannot be used, or repeats a name or a secret.
    """

    def __init__(
        self, fixed: Sequence[ApiKey], file: Path | None, clock: Callable[[], float], journal: Journal | None = None
    ) -> None:
        self._fixed = tuple(fixed)
        self._file = file
        self._clock = clock
        self._journal = journal or Journal()
        self._watch = FileWatch(() if file is None else (file,))
        self.keys = self._read()

    def __iter__(self) -> Iterator[ApiKey]:
        return iter(self.keys.values())

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(key.name for key in self)})"

    def find(self, digest: bytes) -> ApiKey | None:
        """The valid key whose secret has this digest; ``None`` when there is none, or it has expired."""
        key = self.keys.get(digest)
        return key if key is not None and self.still_has(key, self.keys) else None

    def still_has(self, key: ApiKey, keys: Mapping[bytes, ApiKey]) -> bool:
        """Whether ``key`` is still valid.

        Args:
            keys: this ring's keys when ``key`` was found in it.
        """
        return keys is self.keys and (key.expires_at is None or self._clock() < key.expires_at)

    async def watch(self) -> None:
        """Apply changes of the file until cancelled; ends at once when there is no file."""
        if self._file is not None:
            await self._watch.run(self._reload)

    def reload_if_changed(self) -> None:
        """Read the file again if it has changed."""
        if self._watch.changed():
            self._reload()

    def _reload(self) -> None:
        try:
            self.keys = self._read()
        except KeyFileError as error:
            logger.error("keys: %s; the previous keys stay valid", error)
            text = f"The changed key file cannot be used, and the previous keys stay valid: {error}."
            self._journal.note("reload", text, severity="error", like="keys")
        else:
            valid = sum(self.still_has(key, self.keys) for key in self)
            expired = len(self.keys) - valid
            logger.info("keys: reloaded, %d valid, %d expired", valid, expired)
            self._journal.note(
                "reload", f"The key file was read again: {valid} keys are valid, {expired} have expired."
            )

    def _read(self) -> Mapping[bytes, ApiKey]:
        from_file = read_key_file(self._file) if self._file else []
        try:
            return keys_by_digest([*self._fixed, *from_file])
        except ValueError as error:
            raise KeyFileError(f"{self._file}: {error}") from None
