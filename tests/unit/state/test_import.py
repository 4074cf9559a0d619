"""Without STATE_URL, the package of Redis is not imported."""

from __future__ import annotations

import subprocess
import sys

_BUILD = """\
import sys
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.server import make_host
make_host(Configuration.of(Settings(backends=("http://127.0.0.1:1",){more})))
print("redis" in sys.modules)
"""


def test_the_package_of_redis_is_imported_only_with_a_url() -> None:
    for more, imported in (("", "False"), (', state_url="redis://127.0.0.1:1"', "True")):
        code = _BUILD.format(more=more)
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert ended.stdout.strip() == imported
