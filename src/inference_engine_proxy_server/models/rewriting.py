"""What changes in a request for a name of the catalog: the name of the model, and parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec import Raw

from inference_engine_proxy_server.config.fleet import ParametersConfig
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.models.body_patch import BodyPatch, applied
from inference_engine_proxy_server.models.dialects import DIALECTS, LIMITS, Dialect
from inference_engine_proxy_server.models.rules import (
    Kind,
    Rule,
    combined,
    efforts_in,
    in_dialect,
    json_of,
    stated_effort,
)
from inference_engine_proxy_server.models.system_prompt import SystemPrompt
from inference_engine_proxy_server.requests.body_spans import body_spans, in_utf8
from inference_engine_proxy_server.requests.content import all_members, names_no_model, read_text_in
from inference_engine_proxy_server.requests.forms import URLENCODED, is_form, media_type, with_field, with_parameter
from inference_engine_proxy_server.requests.tolerant_json import Span, member_spans

__all__ = ["PathPatch", "Rewriting", "gets_default_model"]

_MODEL = "model"


@dataclass(frozen=True, slots=True)
class PathPatch:
    """The changes of bodies on the paths of one API.

    Attributes:
        effort: where the API has the reasoning effort.
        usual: for requests whose effort has no meaning of its own.
        without_effort: for requests that state none.
        by_effort: for requests whose effort has a meaning.
        system_prompt: added to requests without one; ``None`` for none.
    """

    effort: Sequence[str]
    usual: BodyPatch
    without_effort: BodyPatch
    by_effort: Mapping[str, BodyPatch]
    system_prompt: SystemPrompt | None

    @classmethod
    def of(cls, layers: Sequence[ParametersConfig], dialect: Dialect, model: str | None) -> PathPatch:
        """The changes that ``layers`` describe, from the model's own entry to the most specific one.

        Args:
            model: the name for the engine; ``None`` if the name in the body stays.
        """

        def patch(effort: str | None) -> BodyPatch:
            rules = in_dialect(combined(layers, effort), dialect)
            return BodyPatch(rules | _naming(model))

        plain = combined(layers)
        fixed, default = (stated_effort(plain, kind) for kind in (Kind.SET, Kind.DEFAULT))
        usual = patch(fixed)
        by_effort = {} if fixed is not None else {effort: patch(effort) for effort in efforts_in(layers)}
        prompts = [layer.system_prompt for layer in layers if layer.system_prompt is not None]
        return cls(
            effort=dialect.effort,
            usual=usual,
            without_effort=usual if default is None else by_effort.get(default, usual),
            by_effort=by_effort,
            system_prompt=SystemPrompt.of(prompts[-1] if prompts else None, dialect),
        )

    def with_new_members(self, body: bytes, members: Mapping[str, Raw]) -> bytes | None:
        """``body`` with the changes, if they only add members; see :meth:`.BodyPatch.with_new_members`."""
        if self.system_prompt is not None or (self.by_effort and self.effort[0] in members):
            return None
        return (self.without_effort if self.by_effort else self.usual).with_new_members(body, members)

    def apply(self, body: bytes, spans: Sequence[Span]) -> bytes:
        """``body`` with the changes; ``spans`` are its members."""
        patch = self.usual
        if self.by_effort:
            stated = _value_at(self.effort, body, spans)
            effort = read_text_in(stated)
            patch = self.without_effort if stated is None else self.by_effort.get(effort or "", patch)
        edits = patch.edits(body, spans)
        if self.system_prompt is not None:
            edits += self.system_prompt.edits(body, spans)
        return applied(body, edits)


def gets_default_model(path: str, header_lines: bytes, body: bytes) -> bool:
    """Whether the default model is added to this body. Other requests without a model only prefer its backends."""
    return path in DIALECTS and names_no_model(header_lines, body)


def _naming(model: str | None) -> dict[tuple[str, ...], Rule]:
    return {} if model is None else {(_MODEL,): Rule(Kind.SET, json_of(model))}


def _value_at(path: Sequence[str], body: bytes, spans: Sequence[Span] | None) -> bytes | None:
    """The value of the member at ``path``; ``None`` if it is missing or null."""
    *outer, last = path
    for name in outer:
        span = next((one for one in reversed(spans or ()) if one.name == name), None)
        spans = None if span is None else member_spans(body[span.start : span.end])
        body = b"" if span is None else body[span.start : span.end]
    found = next((body[one.start : one.end] for one in reversed(spans or ()) if one.name == last), None)
    return None if found == b"null" else found


@dataclass(frozen=True, slots=True)
class Rewriting:
    """The changes of requests for one name.

    Attributes:
        model: the name for the engine; ``None`` if the client's name stays.
        by_path: changes of bodies on the paths that have some besides the name.
        changes_limit: whether the most tokens of an answer may change.
    """

    model: str | None
    by_path: Mapping[str, PathPatch]
    changes_limit: bool
    _rename: BodyPatch

    @classmethod
    def of(cls, layers: Sequence[ParametersConfig], model: str | None) -> Rewriting:
        """The changes that ``layers`` describe; arguments as of :meth:`PathPatch.of`."""
        patches = {dialect: PathPatch.of(layers, dialect, model) for dialect in set(DIALECTS.values())}
        by_path = {path: patches[dialect] for path, dialect in DIALECTS.items()} if layers else {}
        rules = [combined(layers, effort) for effort in (None, *efforts_in(layers))]
        changes_limit = any(path[0] in LIMITS for some in rules for path in some)
        return cls(model, by_path, changes_limit, BodyPatch(_naming(model)))

    def target(self, target: bytes) -> bytes:
        """``target``, a path with its query, with the engine's name of the model in the query."""
        path, mark, query = target.partition(b"?")
        return path + mark + with_parameter(query, _MODEL, self.model) if self.model is not None and query else target

    def body(self, path: str, header_lines: bytes, body: bytes) -> bytes:
        """``body`` with the changes.

        Args:
            path: of the request, without its query.
            header_lines: of the request, each ending in CRLF.
            body: not empty.

        Raises:
            ClientError: the body cannot be read, and parameters in it would have to be changed.
        """
        patch = self.by_path.get(path)
        if patch is None:
            return body if self.model is None else self._renamed(header_lines, body, self.model)
        members = all_members(body)
        changed = patch.with_new_members(body, members) if members else None
        if changed is not None:
            return changed
        text = in_utf8(body)
        spans = body_spans(text, members)
        if spans is None:
            message = (
                "The proxy sets parameters of this model, and cannot read the body. Send one JSON object in UTF-8, "
                "without Content-Encoding."
            )
            raise ClientError(message, code="unreadable_body")
        return patch.apply(text, spans)

    def _renamed(self, header_lines: bytes, body: bytes, model: str) -> bytes:
        if body[:1] != b"{" and is_form(header_lines):
            return with_field(header_lines, body, _MODEL, model)
        if body[:1] != b"{" and media_type(header_lines) == URLENCODED:
            return with_parameter(body, _MODEL, model)
        text = in_utf8(body)
        spans = body_spans(text)
        if spans is None:
            return body  # the query names the model
        named = [span for span in spans if span.name.lower() == _MODEL]
        if named and all(span.name != _MODEL for span in named):  # Go's JSON library (Ollama) ignores case
            return applied(text, BodyPatch({(named[0].name,): Rule(Kind.SET, json_of(model))}).edits(text, spans))
        return applied(text, self._rename.edits(text, spans)) if named else body
