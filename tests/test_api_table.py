"""The table of APIs in docs/clients.md agrees with the program."""

from __future__ import annotations

import re
from pathlib import Path

from end_to_end.apis import APIS
from inference_engine_proxy_server.dispatch.retry import is_repeatable
from inference_engine_proxy_server.requests.destinations import IN_A_SLOT, Destinations, writes_text
from inference_engine_proxy_server.resume.dialects import DIALECTS

ROOT = Path(__file__).parent.parent


def test_the_table_of_apis_agrees_with_the_program() -> None:
    section = (ROOT / "docs" / "clients.md").read_text().partition("## APIs")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`/.*?) \| .* \| (.*) \| (.*) \| (.*) \| (.*) \| (.*) \|$", section, re.MULTILINE)
    documented = {path: facts for paths, _, *facts in rows for path in re.findall("`(.*?)`", paths)}
    destinations = Destinations((), lambda *_: False)
    found = {}
    for path in documented:
        takes_slot = destinations.of("POST", path) in IN_A_SLOT
        tokens = ("prompt and answer" if writes_text(path) else "prompt") if takes_slot else "no"
        dialect = DIALECTS.get(path)
        engines = "no" if dialect is None else "llama.cpp, vLLM" if path.endswith("completions") else "llama.cpp"
        found[path] = ["yes" if takes_slot else "no", "yes" if is_repeatable("POST", path) else "no", tokens, engines]
    assert documented == found
    assert {api.path for api in APIS} | {path for path in DIALECTS if path.startswith("/v1/")} <= documented.keys()
