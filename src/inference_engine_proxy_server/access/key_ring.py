"""All keys that are valid now: those of the settings, and those of a file that is read again when it changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from inference_engine_proxy_server.config.api_keys import ApiKey, KeyFileError, keys_by_digest, read_key_file
from inference_engine_proxy_server.config.file_stamp import stamp_of

__all__ = ["KeyRing"]

_LOOK_SECONDS = 1.0  # between two looks whether the file has changed

logger = logging.getLogger(__name__)


class KeyRing:
    """The keys by digest of their secrets.

    Args:
        fixed: keys of the settings.
        file: more of them; ``None``: there is no file.
        clock: seconds since the epoch.

    Attributes:
        keys: by digest; another object whenever anything has changed.

    Raises:
        KeyFileError: the file cannot be used, or repeats a name or a secret.
    """

    def __init__(self, fixed: Sequence[ApiKey], file: Path | None, clock: Callable[[], float]) -> None:
        self._fixed = tuple(fixed)
        self._file = file
        self._clock = clock
        self._stamp = None if file is None else stamp_of(file)
        self.keys = self._read()

    def __iter__(self) -> Iterator[ApiKey]:
        return iter(self.keys.values())

    def find(self, digest: bytes) -> ApiKey | None:
        """The key whose secret has this digest, unless it has expired."""
        key = self.keys.get(digest)
        return key if key is not None and self.still_has(key, self.keys) else None

    def still_has(self, key: ApiKey, keys: Mapping[bytes, ApiKey]) -> bool:
        """Whether ``key`` is valid, which was so when ``keys`` were those of this ring."""
        return keys is self.keys and (key.expires_at is None or self._clock() < key.expires_at)

    async def watch(self) -> None:
        """Take up what changes in the file, until cancelled; what cannot be used is refused as a whole."""
        while self._file is not None:
            await asyncio.sleep(_LOOK_SECONDS)
            self.look_again()

    def look_again(self) -> None:
        """Read the file if it has changed."""
        stamp = None if self._file is None else stamp_of(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.keys = self._read()
        except KeyFileError as error:
            logger.error("keys: %s; the keys before that stay valid", error)
        else:
            logger.info("keys: %d keys are valid now", len(self.keys))

    def _read(self) -> Mapping[bytes, ApiKey]:
        from_file = read_key_file(self._file) if self._file else []
        try:
            return keys_by_digest([*self._fixed, *from_file])
        except ValueError as error:
            raise KeyFileError(f"{self._file}: {error}") from None
