"""Reads the file of API keys (API_KEYS_FILE).

A file with a mistake is rejected as a whole, with one line that names the place and never repeats a secret.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from inference_engine_proxy_server.config.api_keys import ApiKey, digest_of, valid_name, valid_secret
from inference_engine_proxy_server.config.file_problems import FileFormError, problem_with, read_yaml

__all__ = ["KeyFileError", "read_key_file"]


class KeyFileError(Exception):
    """The key file cannot be used; the text says why, without any secret."""


def _as_digest(value: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise ValueError("must be 64 hexadecimal digits, as `inference-proxy keys new NAME` prints them")
    return value


def _as_time(value: object) -> float:
    """Seconds since the epoch; a date alone means the end of that day."""
    try:
        if isinstance(value, str):
            is_date = re.fullmatch(r"\d{4}-\d\d-\d\d", value)
            value = date.fromisoformat(value) if is_date else datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, date):
            return datetime.combine(value, time.max, UTC).timestamp()
    except (ValueError, OverflowError):
        pass  # the message would repeat the text
    raise ValueError("must be a date like 2027-01-31, or a time like 2027-01-31T12:00:00Z")


_Limit = Annotated[int, Field(ge=1, le=10**9)]
_Budget = Annotated[int, Field(ge=1, le=10**15)]


class _Entry(BaseModel):
    """One key in the file."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, AfterValidator(valid_name)]
    secret: str | None = None
    sha256: Annotated[str, AfterValidator(_as_digest)] | None = None
    models: list[str] | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    requests_per_minute: _Limit | None = None
    tokens_per_minute: _Limit | None = None
    concurrent_requests: _Limit | None = None
    tokens_per_day: _Budget | None = None
    tokens_per_month: _Budget | None = None
    expires: Annotated[float | None, BeforeValidator(_as_time)] = None

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_blank(cls, value: object) -> object:
        if value is None:  # `models:` without a value must not mean all models
            raise ValueError("must have a value; to leave it unset, remove the line")
        return value

    @model_validator(mode="after")
    def _has_one_secret(self) -> _Entry:
        if (self.secret is None) == (self.sha256 is None):
            raise ValueError("set either 'sha256' or 'secret'")
        if self.secret is not None:
            valid_secret(self.secret)
        return self

    def key(self) -> ApiKey:
        digest = bytes.fromhex(self.sha256) if self.sha256 else digest_of((self.secret or "").encode())
        return ApiKey(
            self.name,
            digest,
            None if self.models is None else frozenset(self.models),
            self.priority,
            self.requests_per_minute,
            self.tokens_per_minute,
            self.concurrent_requests,
            self.expires,
            self.tokens_per_day,
            self.tokens_per_month,
        )


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: list[_Entry]


def read_key_file(path: Path) -> list[ApiKey]:
    """The keys in a YAML file: ``keys:``, a list of objects with ``name``, ``sha256`` or ``secret``, and limits.

    Raises:
        KeyFileError: the file cannot be read, or is invalid.
    """
    try:
        content = read_yaml(path.read_text("utf-8"), {*_File.model_fields, *_Entry.model_fields})
        if content is None:  # an editor may be about to write the content, and must not lock out clients meanwhile
            raise KeyFileError(f"{path} is empty; if that is intended, write 'keys: []'")
        return [entry.key() for entry in _File.model_validate(content).keys]
    except OSError as error:
        raise KeyFileError(f"API_KEYS_FILE is {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} is not UTF-8 text") from None
    except FileFormError as error:
        raise KeyFileError(f"{path} {error}") from None
    except ValidationError as error:
        raise KeyFileError(f"{path}: {problem_with(error, _File, {'keys': _Entry})}") from None
