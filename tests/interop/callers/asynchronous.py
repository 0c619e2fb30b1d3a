"""What the clients in Python share: lines in and out beside an asyncio loop."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

#: Seconds between two words on the data channel, and between two reports.
PAUSE = 0.2


async def orders() -> AsyncIterator[dict[str, Any]]:
    """The order, then the SFU's messages, until nobody is there any more."""
    lines = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        yield json.loads(line)


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)
