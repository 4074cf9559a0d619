"""The base of all entries of the fleet file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, field_validator

__all__ = ["Entry"]


class Entry(BaseModel):
    """A mapping in the file. Its fields may be left out, but not be blank."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_blank(cls, value: object) -> object:
        if value is None:  # `models:` without a value must not mean all models
            raise ValueError("must have a value; to leave it unset, remove the line")
        return value
