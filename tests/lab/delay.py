"""A relay for UDP that keeps every datagram for a while: ``python -m tests.lab.delay FROM TO DELAY JITTER``.

*FROM* is where it listens and *TO* where that goes, as ``host:port``; each source has a socket of its own there, so
that answers find their way back. *DELAY* and *JITTER* are milliseconds: each datagram of either direction waits for the
delay and up to the jitter more, but none overtakes another.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from typing import Any

Address = tuple[str, int]


class _Lane:
    """One direction between one client and the server."""

    def __init__(self, delay: float, jitter: float, send: Callable[[bytes], None]) -> None:
        self._delay, self._jitter, self._send = delay, jitter, send
        self._last = 0.0

    def put(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        # Of two that are due at the same time the loop takes either first.
        self._last = max(self._last + 1e-6, loop.time() + self._delay + random.uniform(0, self._jitter))
        loop.call_at(self._last, self._send, data)


class _Far(asyncio.DatagramProtocol):
    """The socket that the server sees of one client."""

    def __init__(self, lane: _Lane) -> None:
        self._lane = lane

    def datagram_received(self, data: bytes, source: Address) -> None:
        self._lane.put(data)


class Relay(asyncio.DatagramProtocol):
    def __init__(self, server: Address, delay: float, jitter: float) -> None:
        self._server, self._delay, self._jitter = server, delay / 1000, jitter / 1000
        self._lanes: dict[Address, asyncio.Future[_Lane]] = {}

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, source: Address) -> None:
        if source not in self._lanes:
            self._lanes[source] = asyncio.ensure_future(self._open(source))
        self._lanes[source].add_done_callback(lambda lane: lane.result().put(data))

    async def _open(self, source: Address) -> _Lane:
        """Lanes both ways; the one towards the server."""
        back = _Lane(self._delay, self._jitter, lambda data: self._transport.sendto(data, source))
        loop = asyncio.get_running_loop()
        far, _ = await loop.create_datagram_endpoint(lambda: _Far(back), remote_addr=self._server)
        return _Lane(self._delay, self._jitter, far.sendto)


async def main(listen: str, server: str, delay: str, jitter: str) -> None:
    loop = asyncio.get_running_loop()
    relay = Relay(_address(server), float(delay), float(jitter))
    await loop.create_datagram_endpoint(lambda: relay, local_addr=_address(listen))
    print("ready", flush=True)
    await asyncio.Event().wait()


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
