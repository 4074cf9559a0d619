"""``inference-proxy demo``: real llama.cpp servers with a small real model, on the CPU, installed from Python packages.

* ``model``   joins the model file from its packages, and checks it against its pinned SHA-256
* ``fleet``   starts the servers, waits until they are ready, and stops them in every case
* ``engine``  the program of one server process; the only file that imports ``xllamacpp``
"""

from inference_engine_proxy_server.demo.errors import DemoUnavailable
from inference_engine_proxy_server.demo.fleet import curl_line, demo_fleet

__all__ = ["DemoUnavailable", "curl_line", "demo_fleet"]
