"""Discovery of engines, and detection of the engine of a backend."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from inference_engine_proxy_server.backends.base import Probe, Reply, UnreadableState
from inference_engine_proxy_server.backends.llamacpp import LlamaCppBackend
from inference_engine_proxy_server.backends.openai import OpenAIBackend
from inference_engine_proxy_server.backends.registry import Engines, discover_engines, identify
from inference_engine_proxy_server.backends.vllm import VLLMBackend
from recorded import answering, recorded

BUILT_IN = {"llamacpp": LlamaCppBackend, "openai": OpenAIBackend, "vllm": VLLMBackend}
ENGINES = Engines(BUILT_IN, fallback=OpenAIBackend)

ENGINE_MODULE = """
from inference_engine_proxy_server.backends.base import BaseBackend

class {name}(BaseBackend):
    providers = ("thing", "vllm")

    async def fetch_metrics(self):
        return 0.0, True
"""


def install(directory: Path, module: str, text: str, *names: str, attribute: str = "Engine") -> None:
    """A package with one module and the metadata of an installed one."""
    (directory / f"{module}.py").write_text(text)
    about = directory / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {module}:{attribute}\n" for name in names)
    (about / "entry_points.txt").write_text(f"[inference_engine_proxy_server.backends]\n{lines}")


def test_the_built_in_engines_are_discovered() -> None:
    engines = discover_engines()
    assert engines.by_provider.items() >= BUILT_IN.items()
    assert engines.fallback is OpenAIBackend


def test_two_engines_of_one_package_cannot_claim_the_same_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "clashing_engines"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "one.py").write_text(ENGINE_MODULE.format(name="One"))
    (package / "two.py").write_text(ENGINE_MODULE.format(name="Two"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"One.*Two.*'thing'"):
        discover_engines(importlib.import_module("clashing_engines"))


def test_an_imported_engine_does_not_conflict_with_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sharing_engines"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "one.py").write_text(ENGINE_MODULE.format(name="One"))
    (package / "two.py").write_text("from sharing_engines.one import One\nAlias = One\n")
    monkeypatch.syspath_prepend(tmp_path)
    engines = discover_engines(importlib.import_module("sharing_engines"))
    assert {engine.__name__ for engine in engines.by_provider.values()} == {"One"}


def test_an_entry_point_overrides_a_built_in_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "better_vllm", ENGINE_MODULE.format(name="Engine"), "better")
    monkeypatch.syspath_prepend(tmp_path)
    by_provider = discover_engines().by_provider
    assert {by_provider[name].__module__ for name in ("vllm", "thing", "better")} == {"better_vllm"}
    assert by_provider["llamacpp"] is LlamaCppBackend


def test_the_first_of_two_entry_points_by_name_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, "later_engine", ENGINE_MODULE.format(name="Engine"), "b")
    install(tmp_path, "earlier_engine", ENGINE_MODULE.format(name="Engine"), "a")
    monkeypatch.syspath_prepend(tmp_path)
    by_provider = discover_engines().by_provider
    assert by_provider["thing"].__module__ == by_provider["a"].__module__ == "earlier_engine"
    assert by_provider["b"].__module__ == "later_engine"
    assert "the provider thing belongs to" in caplog.text


@pytest.mark.parametrize(
    ("text", "attribute", "message"),
    [
        ("raise RuntimeError('made on Friday')", "Engine", "made on Friday"),
        ("import a_module_that_is_not_there", "Engine", "a_module_that_is_not_there"),
        ("", "Engine", "cannot be loaded"),
        ("Engine = 3", "Engine", "not a complete subclass"),
        ("class Engine: pass", "Engine", "not a complete subclass"),
        (ENGINE_MODULE.format(name="Engine"), "BaseBackend", "not a complete subclass"),
    ],
)
def test_a_broken_entry_point_is_logged_and_skipped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
    text: str,
    attribute: str,
    message: str,
) -> None:
    module = f"broken_engine_{request.node.callspec.indices['text']}"  # a process imports a module only once
    built_in = discover_engines().by_provider
    install(tmp_path, module, text, "broken", attribute=attribute)
    monkeypatch.syspath_prepend(tmp_path)
    assert discover_engines().by_provider == built_in
    assert "'broken'" in caplog.text
    assert message in caplog.text


def owned_by(*owners: object) -> Reply:
    return Reply(200, json.dumps({"data": [{"id": "m", "owned_by": owner} for owner in owners]}).encode())


@pytest.mark.parametrize(
    ("answer", "engine"),
    [
        (recorded("llama-server", "v1-models"), LlamaCppBackend),
        (recorded("llama-server-router", "v1-models-after"), LlamaCppBackend),
        (recorded("xllamacpp", "v1-models"), LlamaCppBackend),
        (recorded("vllm", "v1-models"), VLLMBackend),
        (owned_by("unknown-engine", "vllm", "llamacpp"), VLLMBackend),
        (owned_by("openai", "vllm"), VLLMBackend),
        (owned_by("openai"), OpenAIBackend),
        (owned_by("unknown-engine"), OpenAIBackend),
        (owned_by(None, [], {}, 3), OpenAIBackend),
        (Reply(200, b'{"data": []}'), OpenAIBackend),
        (Reply(200, b'{"data": [{"id": "m"}]}'), OpenAIBackend),
        (recorded("llama-server", "err-no-api-key"), OpenAIBackend),
        (Reply(403, b""), OpenAIBackend),
        (recorded("vllm", "err-404"), OpenAIBackend),
        (Reply(405, b""), OpenAIBackend),
        (Reply(501, b""), OpenAIBackend),
        (recorded("llama-server", "models-loading"), None),
        (Reply(302, b""), None),
        (Reply(429, b""), None),
        (Reply(500, b""), None),
        (Reply(502, b""), None),
        (Reply(200, b"<html></html>"), None),
        (Reply(200, b'{"data": {}}'), None),
    ],
)
async def test_the_owner_of_the_models_identifies_the_engine(
    answer: Reply | Exception, engine: type[object] | None
) -> None:
    assert await identify(ENGINES, Probe(answering({"/v1/models": answer}))) is engine


async def test_llama_cpp_and_vllm_are_recognized_without_their_key() -> None:
    refused = recorded("vllm", "err-no-api-key")
    engines = discover_engines()
    assert await found(engines, {"/v1/models": recorded("llama-server", "err-no-api-key")}) == "LlamaCppBackend"
    assert await found(engines, {"/v1/models": refused, "/metrics": recorded("vllm", "metrics")}) == "VLLMBackend"
    assert await found(engines, {"/v1/models": refused}) == "OpenAIBackend"


@pytest.mark.parametrize("error", [TimeoutError, ConnectionRefusedError, UnreadableState])
async def test_detection_raises_without_an_http_reply(error: type[Exception]) -> None:
    with pytest.raises(error):
        await identify(ENGINES, Probe(answering({"/v1/models": error()})))


RECOGNIZING_MODULE = """
from inference_engine_proxy_server.backends.base import BaseBackend

class {name}(BaseBackend):
    providers = ("{provider}",)

    @classmethod
    async def recognizes(cls, probe):
        {recognizes}

    async def fetch_metrics(self):
        return 0.0, True
"""
BY_INFO = 'return "mark" in await probe.json("/info")'


def engines_of(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, **recognizes: str) -> Engines:
    """The engines of a package with one module for each argument."""
    package = directory / name
    package.mkdir()
    (package / "__init__.py").touch()
    for module, body in recognizes.items():
        text = RECOGNIZING_MODULE.format(name=module.title(), provider=module, recognizes=body)
        (package / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(directory)
    return discover_engines(importlib.import_module(name))


async def found(engines: Engines, answers: dict[str, Reply | Exception], asked: list[str] | None = None) -> str | None:
    engine = await identify(engines, Probe(answering(answers, asked)))
    return None if engine is None else engine.__name__


@pytest.mark.parametrize("listing", [Reply(404, b""), Reply(401, b""), Reply(200, b"<html>"), owned_by("someone")])
async def test_an_engine_without_an_owner_recognizes_its_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, listing: Reply
) -> None:
    engines = engines_of(tmp_path, monkeypatch, f"known_{request.node.callspec.indices['listing']}", one=BY_INFO)
    assert await found(engines, {"/v1/models": listing, "/info": Reply(200, b'{"mark": 1}')}) == "One"


async def test_no_engine_is_asked_if_the_owner_identifies_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    engines = engines_of(tmp_path, monkeypatch, "owned", one=BY_INFO, two=BY_INFO)
    assert await found(engines, {"/v1/models": owned_by("two"), "/info": Reply(200, b'{"mark": 1}')}, asked) == "Two"
    assert asked == ["/v1/models"]


async def test_no_engine_is_asked_while_the_backend_is_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    engines = engines_of(tmp_path, monkeypatch, "starting", one=BY_INFO)
    assert await found(engines, {"/v1/models": Reply(503, b"")}, asked) is None
    assert asked == ["/v1/models"]


async def test_engines_are_asked_by_the_names_of_their_modules_and_share_replies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    engines = engines_of(tmp_path, monkeypatch, "sharing", b=BY_INFO, a=BY_INFO, c=BY_INFO)
    assert [engine.__name__ for engine in engines.recognizing] == ["A", "B", "C"]
    assert await found(engines, {}, asked) == "OpenAIBackend"
    assert asked == ["/v1/models", "/info"]


async def test_an_installed_engine_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = RECOGNIZING_MODULE.format(name="Engine", provider="z", recognizes=BY_INFO)
    install(tmp_path, "recognizing_engine", text, "z")
    engines = engines_of(tmp_path, monkeypatch, "asked_later", a=BY_INFO)
    assert await found(engines, {"/info": Reply(200, b'{"mark": 1}')}) == "Engine"


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError()])
async def test_after_a_question_without_an_answer_no_further_one_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, error: Exception
) -> None:
    asked: list[str] = []
    others = 'return "mark" in await probe.json("/other")'
    name = f"hanging_{request.node.callspec.indices['error']}"
    engines = engines_of(tmp_path, monkeypatch, name, a=BY_INFO, b=others)
    probe = Probe(answering({"/info": error, "/other": Reply(200, b'{"mark": 1}')}, asked))
    assert await identify(engines, probe) is OpenAIBackend
    assert asked == ["/v1/models", "/info"]
    assert probe.is_incomplete


async def test_an_engine_that_fails_to_examine_a_backend_is_logged_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engines = engines_of(tmp_path, monkeypatch, "failing", a='return {}["mistake"]', b=BY_INFO)
    assert await found(engines, {"/info": Reply(200, b'{"mark": 1}')}) == "B"
    assert "the engine A failed to examine a backend" in caplog.text


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"mark"', b"\xff", b"[" * 100_000])
async def test_a_reply_that_is_no_object_is_an_empty_one(body: bytes) -> None:
    assert await Probe(answering({"/info": Reply(200, body)})).json("/info") == {}


async def test_a_probe_tells_the_models_of_a_list_and_none_of_anything_else() -> None:
    assert [model["id"] for model in await Probe(answering({"/v1/models": owned_by("x")})).models()] == ["m"]
    assert await Probe(answering({"/v1/models": Reply(200, b"<html>")})).models() == ()
    assert await Probe(answering({})).models() == ()


def test_header_fields_are_found_in_any_case() -> None:
    reply = Reply(200, b"", b"Content-Type: text/plain\r\nSERVER:  llama.cpp \r\nx-server: other\r\n")
    assert (reply.field("server"), reply.field("X-Server"), reply.field("date")) == ("llama.cpp", "other", "")
