"""Ten thousand people come and go, and nothing of them stays. In fake time, without a network; see ``bench.soak``."""

from __future__ import annotations

import gc
from collections import Counter

from twisted.internet.defer import Deferred

from orama.sfu.events import Event
from orama.sfu.peer import Peer
from tests.sfu.browser import FINGERPRINT
from tests.sfu.guests import EVERYTHING, RoomsCase

#: Who comes and goes: all of them, and those before the first count.
PEOPLE, FIRST = 10_000, 500
#: Objects of one type that may be more than before: what happens to be on its way at the moment.
SLACK = 40
ROOMS = 7
DATA = (
    "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n"
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:0\r\na=sctp-port:5000\r\na=setup:actpass\r\n"
    f"a=ice-ufrag:abcd\r\na=ice-pwd:{'p' * 24}\r\na=fingerprint:{FINGERPRINT}\r\n"
)


class ChurnTests(RoomsCase):
    async def test_nothing_grows(self) -> None:
        """After 10,000 joins and leaves with tracks, data and subscriptions no type has more objects than before."""
        await self.churn(range(FIRST))
        before = self.objects()
        await self.churn(range(FIRST, PEOPLE))
        grown = self.objects() - before
        self.assertEqual({name: more for name, more in grown.items() if more > SLACK}, {})
        self.assertEqual(self.rooms.peers(), 0)

    async def churn(self, people: range) -> None:
        """In tens: three meet, with tracks and data and everything agreed on; the others pass through."""
        for number in people:
            turn, room = number % 10, f"room-{number // 10 % ROOMS}"
            if turn == 0:
                staying = self.guest(room)
                continue
            if turn == 1:
                talking = self.talker(room)
                continue
            guest = self.guest(room if turn == 2 else f"own-{turn}")
            if turn == 2:
                guest.publish("audio1", "video1")
                self.wait()
                self.assertEqual(staying.tracks, {"audio1", "video1"})
                talking.leave()
                staying.peer.leave()
            elif turn < 5:
                guest.publish("audio1" if turn == 4 else "video1")
            elif turn == 6:
                guest.peer.detach()
            guest.peer.leave("left" if turn < 8 else "timeout")
        self.wait(70)
        for done in list(self.rooms._closing):
            waiting: Deferred[None] = Deferred()
            done.addCallback(lambda result, waiting=waiting: waiting.callback(None))
            await waiting

    def talker(self, room: str) -> Peer:
        """Somebody with data channels and nothing else."""
        heard: list[Event] = []
        rights = {"permissions": EVERYTHING, "owner": False}
        peer = self.rooms.join("default", room, user_id="talker", metadata={}, send=heard.append, **rights)
        peer.start()
        peer.offer(DATA)
        return peer

    def objects(self) -> Counter[str]:
        gc.collect()
        return Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
