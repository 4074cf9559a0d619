"""Documents agree with the program about settings, rules, engines and findings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from inference_engine_proxy_server.backends.registry import discover_engines
from inference_engine_proxy_server.config.settings import Settings, as_variable
from inference_engine_proxy_server.config.sources import load_settings
from inference_engine_proxy_server.resume.assembly import DOUBTS
from inference_engine_proxy_server.resume.rules import REQUEST_RULES, RULES, STREAM_RULES

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "inference_engine_proxy_server"
READMES = {name: (ROOT / name).read_text() for name in ("README.md", "README.zh-TW.md")}
ENV_EXAMPLE = (ROOT / ".env.example").read_text()
SETTINGS_PAGE = (ROOT / "docs" / "settings.md").read_text()
DEFAULTS = {name.upper(): as_variable(field.default) for name, field in Settings.model_fields.items()}
WITHOUT_DEFAULT = {name for name, default in DEFAULTS.items() if not default}


def test_settings_page_has_a_heading_for_every_setting_and_for_nothing_else() -> None:
    assert re.findall(r"^### (.*)$", SETTINGS_PAGE, re.MULTILINE) == list(DEFAULTS)


def test_settings_page_has_default_range_and_use_of_every_setting() -> None:
    sections = dict(re.findall(r"^### (.*)\n([^#]*)", SETTINGS_PAGE, re.MULTILINE))

    for name, default in DEFAULTS.items():
        assert f"\n* Default: {f'`{default}`' if default else '(none)'}\n" in sections[name], name
        assert "\n* Allowed: " in sections[name], name
        assert "\n* Change it when: " in sections[name], name


def test_settings_page_has_the_enforced_limits() -> None:
    sections = dict(re.findall(r"^### (.*)\n([^#]*)", SETTINGS_PAGE, re.MULTILINE))

    for field, of_field in Settings.model_json_schema()["properties"].items():
        schema = of_field.get("anyOf", [of_field])[0]  # the other alternative is null
        if "maximum" in schema:
            low = f"{schema['minimum']} to" if "minimum" in schema else f"above {schema['exclusiveMinimum']}, up to"
            assert f"* Allowed: {low} {schema['maximum']}" in sections[field.upper()], field
        for choice in schema.get("enum", ()):
            assert f"`{choice}`" in sections[field.upper()], field


def test_the_rules_about_resumed_streams_are_documented_with_their_reasons() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = dict(
        re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", page.partition("## Resumed streams")[2], re.MULTILINE)
    )
    reasons = {**REQUEST_RULES, **STREAM_RULES}
    assert {name: rows.get(name) for name in RULES} == reasons


def test_the_doubts_about_assembled_replies_are_documented_with_their_reasons() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    section = page.partition("## Assembled replies")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", section, re.MULTILINE)) == DOUBTS


def test_every_engine_has_a_section_a_row_of_the_table_and_its_name_in_the_fleet_file() -> None:
    page = (ROOT / "docs" / "engines.md").read_text()
    engines = discover_engines()
    names = {engine.providers[0] for engine in (*engines.by_provider.values(), engines.fallback)}
    sections = re.findall(r"^## (.+)\n\nName in the fleet file: `([\w-]+)`", page, re.MULTILINE)
    rows = re.findall(r"^\| \[[^]]+\]\(#([\w-]+)\) \|", page, re.MULTILINE)
    assert {name for _, name in sections} == names
    assert rows == [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title, _ in sections]


def test_every_finding_of_the_doctor_is_documented() -> None:
    """A code is the first argument of ``Finding``, or the first value that a function returns with other texts."""
    codes: set[str] = set()
    for module in (SOURCE / "doctor").glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="Finding"), args=[ast.Constant(value=str(code)), *_]):
                    codes.add(code)
                case ast.Return(value=ast.Tuple(elts=[ast.Constant(value=str(code)), _, _])):
                    codes |= {f"backend_{code}", f"public_{code}"}
                case ast.Dict(values=[ast.Constant(value=str()), *_] as values, keys=[ast.Attribute(), *_]):
                    codes |= {str(value.value) for value in values if isinstance(value, ast.Constant)}
                case ast.Return(value=ast.Tuple(elts=[ast.Constant(value=str(code)), _, _, _])):
                    codes.add(code)
    rows = re.findall(r"^\| (`[^|]*`) \|", (ROOT / "docs" / "doctor.md").read_text(), re.MULTILINE)
    documented = [code for row in rows for code in re.findall(r"`(\w+)`", row)]
    assert sorted(documented) == sorted({*codes, "settings_invalid"})


def test_env_example_has_a_line_for_every_setting_and_for_nothing_else() -> None:
    lines = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", ENV_EXAMPLE, re.MULTILINE))

    assert list(lines) == list(DEFAULTS)
    assert {name: value for name, value in lines.items() if name not in WITHOUT_DEFAULT} == {
        name: default for name, default in DEFAULTS.items() if default
    }


def test_env_example_describes_every_setting() -> None:
    for name in DEFAULTS:
        assert re.search(rf"^# [^\n=]{{20,}}\n(# )?{name}=", ENV_EXAMPLE, re.MULTILINE), name


def test_env_example_needs_nothing_but_backends() -> None:
    loaded = load_settings({"BACKENDS": "http://llm-1:8080"}, ROOT / ".env.example", backends_required=True)

    assert {name for name, origin in loaded.origins.items() if origin == ".env"} == {"PORT"}
    assert loaded.warnings == ()


def test_env_example_with_every_line_in_effect_gives_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(re.sub(r"^# ([A-Z_]+=)", r"\1", ENV_EXAMPLE, flags=re.MULTILINE))
    (tmp_path / "fleet.yaml").write_text((ROOT / "fleet.example.yaml").read_text())
    monkeypatch.chdir(tmp_path)

    loaded = load_settings({}, env_file)

    assert set(loaded.origins.values()) == {".env"}
    unset = {name.lower(): Settings.model_fields[name.lower()].default for name in WITHOUT_DEFAULT}
    assert loaded.settings.model_copy(update=unset) == Settings()


@pytest.mark.parametrize("text", READMES.values(), ids=READMES)
def test_readme_has_the_defaults_of_the_settings_it_names(text: str) -> None:
    rows = re.findall(r"^\| (`[A-Z_]+`(?:, `[A-Z_]+`)*) \| ([^|]*) \|", text, re.MULTILINE)
    documented: dict[str, str] = {}
    for names, defaults in rows:
        variables = re.findall("[A-Z_]+", names)
        documented |= zip(variables, defaults.split(", ") if len(variables) > 1 else [defaults], strict=True)

    assert len(documented) >= 6
    in_words = {"BLOCKED_PATHS"}  # the list itself is too long for a table
    assert {name: default for name, default in documented.items() if name not in in_words} == {
        name: DEFAULTS[name] for name in documented.keys() - in_words
    }
