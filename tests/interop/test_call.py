"""The contract, section 4, with media: tracks, data channels, speakers, and a socket that drops in the middle of it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.contract.rest import gauges
from tests.contract.stage import shared
from tests.interop.caller import Caller, Tone


def deferred(coroutine: Coroutine[Any, Any, None]) -> Deferred[None]:
    """An asyncio coroutine for trial."""
    return Deferred.fromFuture(asyncio.ensure_future(coroutine))


class CallTests(TestCase):
    timeout = 300

    def setUp(self) -> None:
        self.node = shared()
        self.callers: list[Caller] = []
        self.addCleanup(lambda: deferred(self._close()))

    async def _close(self) -> None:
        for caller in self.callers:
            await caller.close()

    def caller(self) -> Caller:
        made = Caller(self.node, f"call-{self.id()}")
        self.callers.append(made)
        return made

    def test_call(self) -> Deferred[None]:
        """Two clients hear each other and chat; one loses its socket, and neither media nor the other notices."""
        return deferred(self._call())

    async def _call(self) -> None:
        one, two = self.caller(), self.caller()
        welcome = await one.join()
        one.connection.addTrack(Tone())
        chat = one.open("chat")
        await one.publish()
        await two.join()
        two.connection.addTrack(Tone())
        await two.publish()
        await one.until(lambda: sum(one.frames.values()) > 20)
        await two.until(lambda: sum(two.frames.values()) > 20)

        # A track: its own id, the publisher's stream, the mid of the receiver's own connection.
        [added] = one.told("track-added")
        self.assertEqual((added["kind"], added["source"]), ("audio", "microphone"))
        self.assertIn(added["mid"], one.frames)
        remote = one.connection.remoteDescription.sdp
        self.assertIn(f"a=msid:{added['peerId']} {added['trackId']}", remote)
        self.assertNotEqual(added["peerId"], welcome["peerId"])

        # Data: text as text and binary as binary, on the channel that was announced.
        await two.until(lambda: "chat" in two.channels and two.told("data-channel"))
        [announced] = two.told("data-channel")
        self.assertEqual(set(announced), {"type", "peerId", "label", "id"})
        self.assertEqual((announced["peerId"], announced["label"]), (welcome["peerId"], "chat"))
        self.assertEqual(announced["id"], two.channels["chat"].id)
        for message in ("text", b"\x00binary", "", "x" * 200_000):
            chat.send(message)
        await two.until(lambda: len(two.heard) == 4)
        self.assertEqual(two.heard, [("chat", each) for each in ("text", b"\x00binary", "", "x" * 200_000)])
        two.channels["chat"].send("back")
        await one.until(lambda: one.heard == [("chat", "back")])

        # Speakers, the loudest first.
        await two.until(lambda: two.told("active-speakers"))
        speakers = two.told("active-speakers")[0]["peers"]
        self.assertEqual([set(each) for each in speakers], [{"peerId", "level"}] * len(speakers))
        self.assertEqual(speakers, sorted(speakers, key=lambda each: -each["level"]))

        # The socket of one drops; its place is taken again.
        before, heard = [message["type"] for message in two.client.received], sum(two.frames.values())
        one.client.drop()
        await two.until(lambda: sum(two.frames.values()) > heard + 30)
        again = await one.join(resume=welcome["resume"])
        self.assertEqual(again["peerId"], welcome["peerId"])
        counts = sum(one.frames.values()), sum(two.frames.values())
        await one.until(lambda: sum(one.frames.values()) > counts[0] + 20)
        await two.until(lambda: sum(two.frames.values()) > counts[1] + 20)
        chat.send("still there")
        await two.until(lambda: two.heard[-1] == ("chat", "still there"))
        news = [message["type"] for message in two.client.received][len(before) :]
        self.assertEqual(set(news) - {"active-speakers"}, set())

        # Leaving is told, and the track goes.
        await one.say("leave")
        await two.until(lambda: two.told("peer-left"))
        self.assertEqual(two.told("peer-left")[0]["peerId"], welcome["peerId"])
        self.assertEqual(len(two.told("track-removed")), 1)
        self.assertEqual(len(two.client.received[0]["peers"][0]["tracks"]), 1)
        moved = await asyncio.to_thread(
            gauges, self.node, "orama_sfu_forwarded_packets_total", "orama_turn_bytes_total"
        )
        self.assertGreater(min(moved.values()), 0)
