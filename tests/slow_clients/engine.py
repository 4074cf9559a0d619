"""An engine in its own process, so that its work for slow clients does not delay the other clients.

Answers at once; answers under ``/v1/large`` are large. Prints its base URL, and runs until it is terminated.
"""

from __future__ import annotations

import asyncio
import sys

from support.engine import Engine, answers_with
from support.fakes.engine import http_reply

_LARGE = b"x" * 1_000_000  # for a client that does not read, the kernel buffers at most some hundred of these


async def main() -> None:
    async with Engine() as engine:
        engine.pages["/v1/large"] = answers_with(http_reply(_LARGE))
        sys.stdout.write(f"{engine.url}\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main())
