"""Data channels between two clients of aiortc, at a running node."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.contract.stage import shared
from tests.interop.aiortc_client import deferred
from tests.interop.caller import Caller

_rooms = itertools.count(1)


class DataChannelTests(TestCase):
    timeout = 60

    def call(self, test: Callable[[Caller, Caller], Awaitable[None]]) -> Deferred[None]:
        """Two who are connected, with a channel ``first`` between them."""

        async def run() -> None:
            room = f"data-{next(_rooms)}"
            one, two = Caller(shared(), room), Caller(shared(), room)
            await one.join()
            [peer] = (await two.join())["peers"]
            first = one.open("first")
            await one.publish()
            try:
                await one.until(lambda: first.readyState == "open")
                await two.until(lambda: two.told("data-channel") and "first" in two.channels)
                [told] = two.told("data-channel")
                self.assertEqual((told["peerId"], told["label"]), (peer["peerId"], "first"))
                self.assertEqual(two.channels["first"].id, told["id"])
                await test(one, two)
            finally:
                await asyncio.gather(one.close(), two.close())

        return deferred(run())

    def test_large_messages(self) -> Deferred[None]:
        """64 KiB and 256 KiB, text as text and binary as binary, arrive whole and in order, in either direction."""

        async def test(one: Caller, two: Caller) -> None:
            sent = ["x" * 65536, bytes(range(256)) * 256, "é" * 131072, bytes(range(256)) * 1024, "", b"", "end"]
            for message in sent:
                one.channels["first"].send(message)
            await two.until(lambda: len(two.heard) == len(sent))
            self.assertEqual([message for _, message in two.heard], sent)
            for message in sent:
                two.channels["first"].send(message)
            await one.until(lambda: len(one.heard) == len(sent))
            self.assertEqual([message for _, message in one.heard], sent)

        return self.call(test)

    def test_parameters(self) -> Deferred[None]:
        """A channel that one opens has the label, protocol, ordering and reliability that it was given, at the other
        too; and closes there when it does here."""

        async def test(one: Caller, two: Caller) -> None:
            channel = one.connection.createDataChannel("game", ordered=False, maxRetransmits=0, protocol="moves")
            one.channels["game"] = channel
            await two.until(lambda: "game" in two.channels)
            other = two.channels["game"]
            self.assertEqual((other.label, other.protocol, other.ordered, other.maxRetransmits),
                             ("game", "moves", False, 0))  # fmt: skip
            await one.until(lambda: channel.readyState == "open")
            channel.send("e4")
            await two.until(lambda: ("game", "e4") in two.heard)
            channel.close()
            await two.until(lambda: other.readyState == "closed")

        return self.call(test)
