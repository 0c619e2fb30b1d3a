"""Who leaves is gone at once, whether or not Python ever looks for reference cycles."""

from __future__ import annotations

import asyncio
import gc
import re
from collections import Counter
from typing import Any
from weakref import ref

from aiortc.rtcdatachannel import RTCDataChannel, RTCDataChannelParameters
from aiortc.rtcdtlstransport import RTCDtlsFingerprint, RTCDtlsParameters, RTCDtlsTransport
from aiortc.rtcsctptransport import RTCSctpCapabilities, RTCSctpTransport
from OpenSSL import SSL

from orama.net.fabric import Address, Burst
from orama.sfu._aiortc import Dtls
from orama.sfu.events import Answer, Event, Kicked
from orama.sfu.rooms import Rooms
from orama.wire import stun
from tests.sfu.browser import FINGERPRINT
from tests.sfu.calls import CLIENT_CERTIFICATE, FINGERPRINTS, Wire, on_loop, swallow
from tests.sfu.clients import Room, Source, camera
from tests.sfu.guests import CERTIFICATE, RELAYS, Guest, RoomsCase

PEOPLE = 1000
GOOD, WRONG = f"sha-256 {dict(FINGERPRINTS)['sha-256']}", FINGERPRINT


class Caller(Guest):
    """A guest with a microphone and a data channel, whose ICE, DTLS and SCTP are real: aiortc's, behind a relay.

    :ivar heard: what came on data channels.
    """

    def __init__(self, rooms: Rooms, number: int, fingerprint: str = GOOD) -> None:
        self._fabric = rooms._fabric
        self._fingerprint = fingerprint
        self._relay: Address = ("127.0.0.1", RELAYS[0] + number)
        self._fabric.attach(self._relay, self._received)
        self.answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.kicked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard: asyncio.Queue[str] = asyncio.Queue()
        super().__init__(rooms, "room")

    def hear(self, event: Event) -> None:
        super().hear(event)
        if isinstance(event, Answer) and not self.answered.done():
            self.answered.set_result(event.sdp)
        if isinstance(event, Kicked):
            self.kicked.set_result(None)

    def ask(self) -> None:
        self.start()
        self.deaf = True
        for kind, track in (("audio", f"audio{self._relay[1]}"), ("application", None)):
            self.browser.add_transceiver(kind, track)
        self.peer.offer(self.browser.offer().replace(FINGERPRINT, self._fingerprint))

    async def connect(self) -> None:
        self.ask()
        text = await self.answered
        found = re.search(r"^a=candidate:\S+ 1 udp \d+ (\S+) (\d+)", text, re.M)
        credentials = [re.search(rf"^a=ice-{name}:(\S+)", text, re.M) for name in ("ufrag", "pwd")]
        assert found is not None
        self._port = found.group(1), int(found.group(2))
        ufrag, password = (each.group(1) for each in credentials if each is not None)
        attributes: list[tuple[stun.Attribute[Any], Any]] = [(stun.USERNAME, f"{ufrag}:them")]
        attributes += [(stun.ICE_CONTROLLING, 7), (stun.PRIORITY, 1000), (stun.USE_CANDIDATE, True)]
        check = (stun.Method.BINDING, stun.Class.REQUEST, bytes(12), attributes)
        self._send(stun.build(*check, key=password.encode(), fingerprint=True))
        self._wire = Wire()
        self._wire.to_server = self._send
        self._dtls = RTCDtlsTransport(self._wire, [CLIENT_CERTIFICATE])  # type: ignore[arg-type]
        self._dtls._set_role("client")
        await self._dtls.start(RTCDtlsParameters([RTCDtlsFingerprint("sha-256", CERTIFICATE.fingerprint())]))
        self._sctp = RTCSctpTransport(self._dtls, 5000)
        self._sctp.on("datachannel", lambda channel: channel.on("message", self.heard.put_nowait))
        await self._sctp.start(RTCSctpCapabilities(65536), 5000)
        self.channel = RTCDataChannel(self._sctp, RTCDataChannelParameters(label="chat"))

    async def hang_up(self) -> None:
        """End what the client has."""
        await self._sctp.stop()
        await self._dtls.stop()

    def forget(self) -> None:
        """Keep nothing of the SFU's."""
        self._fabric.detach(self._relay)
        self.events.clear()
        del self.peer

    def _send(self, datagram: bytes) -> None:
        self._fabric.deliver((datagram,), self._relay, self._port)

    def _received(self, packets: Burst, source: Address) -> None:
        for packet in packets:
            if 20 <= packet[0] < 64:
                self._wire.to_client((bytes(packet),))


class LeavingTests(RoomsCase):
    timeout = 60

    def setUp(self) -> None:
        super().setUp()
        loop = asyncio.get_event_loop()
        # aiortc's clients go on for a moment when DTLS has ended, and nobody is there for what they say of that.
        swallow(loop, [])
        self.addCleanup(loop.set_exception_handler, None)
        self.addCleanup(gc.collect)
        self.addCleanup(gc.enable)
        gc.disable()

    @staticmethod
    def ours() -> Counter[str]:
        """How many objects of each of our types there are."""
        names = (f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
        return Counter(name for name in names if name.startswith("orama."))

    async def gone(self) -> None:
        """Wait until what ends by and by has ended, and the rooms are gone."""
        for done in list(self.rooms._closing):
            ended = asyncio.get_running_loop().create_future()
            done.addCallback(ended.set_result)
            await ended
        self.wait(70)
        await asyncio.sleep(0)
        self.assertEqual(self.rooms.all("default"), ())

    @on_loop
    async def test_without_a_look(self) -> None:
        """A thousand join, publish, subscribe and leave, in rooms that come and go: no object of ours is left."""
        await self._come_and_go(12)
        before = self.ours()
        await self._come_and_go(PEOPLE)
        self.assertEqual(self.ours() - before, Counter())

    async def _come_and_go(self, people: int) -> None:
        """By fours: two talk, one has cameras by turns, one is away until its time is up. Each third room is closed."""
        for number in range(people // 4):
            room = f"room-{number}"
            guests = [self.guest(room) for _ in range(4)]
            guests[0].publish(f"audio{number}", f"video{number}")
            guests[1].publish(f"video{number}b")
            guests[2].peer.receive("video", 1)
            guests[3].peer.detach()
            self.wait()
            self.assertGreater(len(guests[1].tracks), 1)
            if number % 3 == 0:
                self.rooms.close("default", room)
            else:
                for guest in guests[:3]:
                    guest.peer.leave()
        self.wait(self.sfu.resume_timeout)
        await self.gone()

    def test_muted(self) -> None:
        """A track that ends while it is muted goes as others do."""
        client = Room().client()
        client.publish(camera())
        client.send(*Source(client, 1111).frame(key=True))
        client.media.tracks["camera"].muted = True
        track = ref(client.media.tracks["camera"])
        client.publish()
        self.assertIsNone(track())

    @on_loop
    async def test_with_dtls_and_data(self) -> None:
        """The same where DTLS is up and data has come through, whoever ends it, and of OpenSSL nothing either."""
        await self._call(0)
        before = self.ours()
        connections = [each for round in range(1, 4) for each in await self._call(2 * round)]
        self.assertEqual(len(connections), 6)
        self.assertEqual([each() for each in connections if each() is not None], [])
        self.assertEqual(self.ours() - before, Counter())

    async def _call(self, number: int) -> list[ref[SSL.Connection]]:
        """Two talk; one of them leaves with a word, of the other DTLS ends. The connections of OpenSSL on our side."""
        one, two = Caller(self.rooms, number), Caller(self.rooms, number + 1)
        await one.connect()
        await two.connect()
        one.channel.send("hello")
        self.assertEqual(await asyncio.wait_for(two.heard.get(), 15), "hello")
        connections = [ref(each._ssl) for each in gc.get_objects() if type(each) is Dtls and each._ssl is not None]
        one.peer.leave()
        await two.hang_up()
        await asyncio.wait_for(two.kicked, 15)
        await self.gone()
        await one.hang_up()
        one.forget()
        two.forget()
        return connections

    @on_loop
    async def test_dtls_that_fails(self) -> None:
        """A client whose certificate is not that of its fingerprint leaves nothing, nor does one that never comes."""
        await self._fail(0)
        before = self.ours()
        await self._fail(2)
        self.assertEqual(self.ours() - before, Counter())

    async def _fail(self, number: int) -> None:
        wrong, silent = Caller(self.rooms, number, WRONG), Caller(self.rooms, number + 1)
        silent.ask()
        await wrong.connect()
        await asyncio.wait_for(wrong.kicked, 15)
        await wrong.hang_up()
        silent.peer.leave()
        wrong.forget()
        silent.forget()
        await self.gone()
