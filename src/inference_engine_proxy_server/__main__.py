"""``python -m inference_engine_proxy_server`` is the command ``inference-proxy``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
