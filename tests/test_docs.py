"""What the documents say about settings is what the program does."""

from __future__ import annotations

import re
from pathlib import Path

from inference_engine_proxy_server.settings import Settings, as_variable, load_settings

ROOT = Path(__file__).parent.parent
ENV_EXAMPLE = (ROOT / ".env.example").read_text()
SETTINGS_PAGE = (ROOT / "docs" / "settings.md").read_text()
DEFAULTS = {name.upper(): as_variable(field.default) for name, field in Settings.model_fields.items()}
WITHOUT_DEFAULT = {name for name, default in DEFAULTS.items() if not default}


def test_settings_page_has_a_heading_for_every_setting_and_for_nothing_else() -> None:
    assert re.findall(r"^### (.*)$", SETTINGS_PAGE, re.MULTILINE) == list(DEFAULTS)


def test_settings_page_tells_default_range_and_use_of_every_setting() -> None:
    sections = dict(re.findall(r"^### (.*)\n([^#]*)", SETTINGS_PAGE, re.MULTILINE))

    for name, default in DEFAULTS.items():
        assert f"\n* Default: {f'`{default}`' if default else '(none)'}\n" in sections[name], name
        assert "\n* Allowed: " in sections[name], name
        assert "\n* Change it when: " in sections[name], name


def test_settings_page_tells_the_limits_that_are_enforced() -> None:
    sections = dict(re.findall(r"^### (.*)\n([^#]*)", SETTINGS_PAGE, re.MULTILINE))

    for field, schema in Settings.model_json_schema()["properties"].items():
        if "maximum" in schema:
            low = f"{schema['minimum']} to" if "minimum" in schema else f"above {schema['exclusiveMinimum']}, up to"
            assert f"* Allowed: {low} {schema['maximum']}" in sections[field.upper()], field
        for choice in schema.get("enum", ()):
            assert f"`{choice}`" in sections[field.upper()], field


def test_env_example_has_a_line_for_every_setting_and_for_nothing_else() -> None:
    lines = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", ENV_EXAMPLE, re.MULTILINE))

    assert list(lines) == list(DEFAULTS)
    assert {name: value for name, value in lines.items() if name not in WITHOUT_DEFAULT} == {
        name: default for name, default in DEFAULTS.items() if default
    }


def test_env_example_says_something_about_every_setting() -> None:
    for name in DEFAULTS:
        assert re.search(rf"^# [^\n=]{{20,}}\n(# )?{name}=", ENV_EXAMPLE, re.MULTILINE), name


def test_env_example_needs_nothing_but_backends() -> None:
    loaded = load_settings({"BACKENDS": "http://llm-1:8080"}, ROOT / ".env.example", backends_required=True)

    assert {name for name, origin in loaded.origins.items() if origin == ".env"} == {"PORT"}
    assert loaded.warnings == ()


def test_env_example_with_every_line_in_effect_gives_the_defaults(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(re.sub(r"^# ([A-Z_]+=)", r"\1", ENV_EXAMPLE, flags=re.MULTILINE))

    loaded = load_settings({}, env_file)

    assert set(loaded.origins.values()) == {".env"}
    unset = {name.lower(): Settings.model_fields[name.lower()].default for name in WITHOUT_DEFAULT}
    assert loaded.settings.model_copy(update=unset) == Settings()
