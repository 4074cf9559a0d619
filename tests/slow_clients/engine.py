"""An engine in a process of its own, so that its work for the slow clients is not what the others wait for.

Answers at once, and under ``/v1/large`` with much. Writes its base URL to standard output, and runs until it is ended.
"""

from __future__ import annotations

import asyncio
import sys

from support.engine import Engine, says
from support.fakes.engine import http_reply

_LARGE = b"x" * 1_000_000  # the kernel takes some hundred times of it for who does not read, and then no more


async def main() -> None:
    async with Engine() as engine:
        engine.pages["/v1/large"] = says(http_reply(_LARGE))
        sys.stdout.write(f"{engine.url}\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main())
