"""Models in the fleet file: what their entries mean, and the messages about mistakes in them."""

from __future__ import annotations

import re

import pytest

from inference_engine_proxy_server.config.fleet import ModelConfig, ParametersConfig
from inference_engine_proxy_server.config.fleet_file import FleetFileError
from support.fleet_files import fleet_file_of

EMPTY = "must not be empty; to leave it unset, remove the line"
BLANK = "must have a value; to leave it unset, remove the line"


def error_of(text: str) -> str:
    """The message, without the file's name."""
    with pytest.raises(FleetFileError) as caught:
        fleet_file_of(text)
    message = str(caught.value)
    assert "\n" not in message
    assert not re.search(r"pydantic|Entry|dictionary|instance", message)
    return message.partition(" ")[2]


def test_an_entry_means_what_it_says() -> None:
    file = fleet_file_of("""\
default_model: gpt-4o
models:
  m:
    aliases: [gpt-4o, "claude-*"]
    hidden_aliases: true
    balancing_policy: rendezvous
    parameters:
      default: {temperature: 0.6, a: {b: {c: 1}}, e: {}}
      set: {stop: [x, {y: 1}], d.e: true, speculative.n_max: 2}
      remove: [logit_bias, a.x, a.x]
      reasoning_effort: {none: {f: {g: false}}, max: high}
      system_prompt: Answer briefly.
  n: {serves_as: m}
""")
    parameters = ParametersConfig(
        defaults={("temperature",): 0.6, ("a", "b", "c"): 1, ("e",): {}},
        fixed={("stop",): ["x", {"y": 1}], ("d", "e"): True, ("speculative.n_max",): 2},
        removed=(("logit_bias",), ("a", "x")),
        reasoning_efforts={"none": {("f", "g"): False}, "max": "high"},
        system_prompt="Answer briefly.",
    )
    assert file.default_model == "gpt-4o"
    assert file.models == {
        "m": ModelConfig("rendezvous", ("gpt-4o", "claude-*"), hidden_aliases=True, parameters=parameters),
        "n": ModelConfig(serves_as="m"),
    }


def test_parameters_can_be_shared_by_anchors() -> None:
    file = fleet_file_of("""\
models:
  a: {parameters: {set: &sampling {temperature: 1, top_k: 5}}}
  b: {parameters: {set: {<<: *sampling, top_k: 7}}}
""")
    assert file.models["b"].parameters == ParametersConfig(fixed={("temperature",): 1, ("top_k",): 7})


@pytest.mark.parametrize(
    "text",
    [
        "{backends: [{url: http://a, models: [big]}], default_model: big}",
        "{backends: [{url: http://a, models: [big]}], models: {small: {serves_as: big}}}",
        "{default_model: x, models: {m: {aliases: [x]}}}",
        "{default_model: n, models: {m: {}, n: {serves_as: m}}}",
        "models: {a: {}, b: {serves_as: a}, c: {serves_as: b}}",
        "models: {m: {parameters: {set: {a: {b: 1}}, remove: [a]}}}",
        "models: {m: {parameters: {set: {a: 1}, default: {ab: 1}, remove: [abc]}}}",
        "models: {m: {parameters: {}}}",
        "models: {m: {fallbacks: [n, x], fallback_after_seconds: 0.5}, n: {fallbacks: [m]}}",
    ],
)
def test_a_name_may_refer_to_what_the_file_names(text: str) -> None:
    fleet_file_of(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {m: {alias: [x]}}", "models.m.alias is unknown; did you mean aliases?"),
        ("models: {m: {aliases: gpt-4o}}", "models.m.aliases: must be a list"),
        ("models: {m: {aliases: []}}", f"models.m.aliases: {EMPTY}"),
        ("models: {m: {aliases: ['']}}", "models.m.aliases.0: must not be empty"),
        (
            "models: {m: {aliases: [*x]}}",
            "is not YAML, line 1: found undefined alias 'x' (text that begins with * must be",
        ),
        ("models: {m: {aliases: [m]}}", "models.m.aliases.0: m is the name of the model itself"),
        ("models: {m: {aliases: [a, n]}, n: {}}", "models.m.aliases.1: n is also the name of a model in this file"),
        ("models: {m: {aliases: [a, a]}}", "models.m.aliases.1: a is listed twice"),
        ("models: {m: {aliases: [a]}, n: {aliases: [a]}}", "models.n.aliases.0: a is also an alias of m"),
        (
            "{backends: [{url: http://a, models: [n]}], models: {m: {aliases: [n]}}}",
            "models.m.aliases.0: n is also a model that a backend in this file lists",
        ),
        (
            "models: {'claude-*': {}}",
            "models.claude-*: the name of a model has no '*'; patterns belong below 'aliases'",
        ),
        ("models: {m: {fallbacks: [m]}}", "models.m.fallbacks.0: m is the model itself"),
        ("models: {m: {fallbacks: [a, b, a]}}", "models.m.fallbacks.2: a is listed twice"),
        ("models: {m: {fallbacks: []}}", f"models.m.fallbacks: {EMPTY}"),
        ("models: {m: {fallbacks: ['a*']}}", "models.m.fallbacks.0: the name of a model has no '*'"),
        ("models: {m: {fallback_after_seconds: 3}}", "models.m: 'fallback_after_seconds' requires 'fallbacks'"),
        (
            "models: {m: {fallbacks: [a], fallback_after_seconds: 0}}",
            "models.m.fallback_after_seconds: must be a number above 0 and up to 86400",
        ),
        ("models: {m: {hidden_aliases: 1}}", "models.m.hidden_aliases: must be true or false"),
        (
            "models: {m: {serves_as: n}}",
            "models.m.serves_as: n is not a model in this file; if a backend reports it, add",
        ),
        (
            "models: {m: {serves_as: qwen}, qwen3: {}}",
            "models.m.serves_as: qwen is not a model in this file; did you mean",
        ),
        ("models: {m: {serves_as: m}}", "models.m.serves_as: m serves as m, which is a circle"),
        (
            "models: {a: {serves_as: b}, b: {serves_as: c}, c: {serves_as: b}}",
            "models.a.serves_as: a serves as b serves as c serves as b, which is a circle",
        ),
        ("models: {m: {aliases: [x]}, n: {serves_as: x}}", "models.n.serves_as: x is an alias; name its model, m"),
        (
            "models: {m: {}, n: {serves_as: m, balancing_policy: rendezvous}}",
            "models.n: 'balancing_policy' belongs to m, which it serves as",
        ),
        (
            "{models: {qwen3: {}}, default_model: qwen}",
            "default_model: qwen is not a model in this file; did you mean qwen3?",
        ),
        (
            "default_model: x",
            "default_model: x is not a model in this file; if a backend reports it, add 'x: {}' below",
        ),
        ("default_model: 'x*'", "default_model: the name of a model has no '*'"),
        ("default_model: 5", "default_model: must be text"),
    ],
)
def test_a_mistake_in_names_is_one_line_with_its_place(text: str, message: str) -> None:
    assert error_of(text).startswith(message)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("defaults: {a: 1}", ".defaults is unknown; did you mean default?"),
        ("x: 1", ".x is unknown; use one of: default, set, remove, reasoning_effort, system_prompt"),
        ("set: ", f".set: {BLANK}"),
        ("set: [a]", ".set: must be a mapping"),
        ("set: {}", f".set: {EMPTY}"),
        ("set: {a: }", ".set: a must have a value; to remove a parameter, list it under 'remove'"),
        ("default: {a: {b: 2026-01-01}}", ".default: a.b must be text, a number, true or false, a list or a mapping"),
        ("set: {a: [{b: .inf}]}", ".set: a.b must be text, a number, true or false, a list or a mapping"),
        ("set: {on: 1}", ".set: the name True must be text: put it in quotes"),
        ("set: {a..b: 1}", ".set: 'a..b' is not the name of a parameter"),
        ("set: {a: {b: 1}, a.b: 2}", ".set: a.b is given twice"),
        ("set: {a: 1, a.b: 2}", ".set: a.b is given twice"),
        ("set: {model: x}", ".set: model cannot be changed here: use 'serves_as' or 'aliases'"),
        ("default: {stream: true}", ".default: stream cannot be changed here: clients can only read the kind of reply"),
        ("remove: [messages]", ".remove: messages cannot be changed here: it is the prompt"),
        ("remove: logit_bias", ".remove: must be a list"),
        ("remove: ['']", ".remove.0: must not be empty"),
        ("set: {a: 1}, default: {a: 2}", ": a is in 'set' and in 'default'; keep one of them"),
        ("set: {a: {b: 1}}, default: {a: 2}", ": a is in 'set' and in 'default'; keep one of them"),
        ("set: {a: 1}, remove: [a.b]", ": a.b is in 'remove' and in 'set'; keep one of them"),
        ("default: {a: 1}, remove: [a]", ": a is in 'remove' and in 'default'; keep one of them"),
        ("reasoning_effort: {}", ".reasoning_effort: must be a mapping such as {none: "),
        ("reasoning_effort: {off: low}", ".reasoning_effort: the effort false must be text: put it in quotes"),
        ("reasoning_effort: {low: 3}", ".reasoning_effort: low must be another effort, or a mapping of parameters"),
        (
            "reasoning_effort: {low: {model: x}}",
            ".reasoning_effort: low: model cannot be changed here: use 'serves_as'",
        ),
        ("system_prompt: ''", ".system_prompt: must not be empty"),
        ("system_prompt: [a]", ".system_prompt: must be text"),
    ],
)
def test_a_mistake_in_parameters_is_one_line_with_its_place(parameters: str, message: str) -> None:
    assert error_of(f"models: {{m: {{parameters: {{{parameters}}}}}}}").startswith(f"models.m.parameters{message}")
