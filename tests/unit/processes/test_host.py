from __future__ import annotations

import subprocess
import sys

import pytest

_PRINT_LIMIT = """
import resource, sys
from inference_engine_proxy_server.processes.host import connection_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
print(connection_limit())
"""


@pytest.mark.parametrize(("files", "connections"), [(256, 102), (1000, 400)])
def test_connection_limit_is_two_fifths_of_the_file_limit(files: int, connections: int) -> None:
    # In a separate process, because a lowered limit cannot be raised again.
    done = subprocess.run(
        [sys.executable, "-c", _PRINT_LIMIT, str(files)], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) == connections
