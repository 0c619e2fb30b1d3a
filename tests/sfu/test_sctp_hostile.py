"""What a client cannot make an SCTP association do or keep."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Awaitable
from typing import Any

from aiortc.rtcsctptransport import (
    ForwardTsnChunk,
    RTCSctpTransport,
    SackChunk,
)

from orama.sfu._sctp_inbound import MAX_CHUNKS, MAX_STREAMS
from tests.sfu.calls import (
    LoopCase,
    SctpCall,
    on_loop,
)


class HostileTests(LoopCase):
    """What a client cannot make us do or keep."""

    async def assert_aborted(self, call: SctpCall, attack: Awaitable[None]) -> None:
        await attack
        await call.until(lambda: call.sctp.state == "closed")
        self.assertEqual(call.sctp.counters.aborted, 1)
        self.assertEqual((call.server.state, call.states), ("connected", ["connecting", "connected"]))
        await call.close()
        await self.assert_nothing_left()

    async def start(self) -> SctpCall:
        call = SctpCall()
        await call.connect()
        return call

    @on_loop
    async def test_parameter_of_no_length(self) -> None:
        """A parameter of length zero, in any chunk that has parameters, ends the association and not the process."""
        for kind, before in ((4, 0), (5, 0), (6, 0), (9, 0), (130, 0), (2, 16)):
            call = await self.start()
            body = bytes(before) + bytes(4)
            await self.assert_aborted(call, call.send_body(struct.pack("!BBH", kind, 0, 4 + len(body)) + body))

    @on_loop
    async def test_message_without_end(self) -> None:
        """A message longer than the window ends the association; no more than the window was kept."""
        call = await self.start()

        async def attack() -> None:
            for i in range(1100):
                await call.send_raw(call.data(1 + i, bytes(1000), flags=0 if i else 2))
                if i % 100 == 0:
                    await asyncio.sleep(0)

        await self.assert_aborted(call, attack())

    @on_loop
    async def test_many_small_fragments(self) -> None:
        """Fragments are counted as well as measured."""
        call = await self.start()

        async def attack() -> None:
            for i in range(MAX_CHUNKS + 2):
                await call.send_raw(call.data(1 + i, b"x", flags=0 if i else 2))
                if i % 50 == 0:
                    await asyncio.sleep(0)

        await self.assert_aborted(call, attack())

    @on_loop
    async def test_gaps(self) -> None:
        """Chunks beyond a gap are kept within the window and dropped beyond, and the association lives."""
        call = await self.start()
        for i in range(1200):
            await call.send_raw(call.data(2 + i, bytes(1000), sequence=1))
            if i % 100 == 0:
                await asyncio.sleep(0)
        await call.send_raw(call.data(MAX_CHUNKS + 10, b"far ahead"))
        channel = call.client_open("closes the gap")
        await call.until(lambda: channel.readyState == "open")
        self.assertGreaterEqual(call.sctp.counters.chunks_dropped, 1200 - 1049)
        self.assertEqual(call.sctp.state, "connected")
        await call.close()

    @on_loop
    async def test_stream_out_of_range(self) -> None:
        """A stream that was not negotiated ends the association, in DATA and in FORWARD TSN."""
        call = await self.start()
        await self.assert_aborted(call, call.send_raw(call.data(1, b"x", stream_id=MAX_STREAMS)))
        call = await self.start()
        chunk = ForwardTsnChunk()
        chunk.cumulative_tsn = call.client_sctp._local_tsn
        chunk.streams = [(MAX_STREAMS, 0)]
        await self.assert_aborted(call, call.send_raw(chunk))

    @on_loop
    async def test_acknowledgements(self) -> None:
        """A SACK of what was not sent, or with gap blocks that span more, ends the association."""
        for ahead, gaps in ((1, []), (0, [(1, 65535)]), (0, [(2, 1)]), (-1, [(1, 1), (1, 1)])):
            call = await self.start()
            chunk = SackChunk()
            chunk.cumulative_tsn = (call.sctp._sctp._local_tsn - 1 + ahead) % 2**32
            chunk.gaps = list(gaps)
            await self.assert_aborted(call, call.send_raw(chunk))

    @on_loop
    async def test_client_begins(self) -> None:
        """A client that begins the association, as all do, gets no INIT of ours: werift would be lost."""
        came: list[str] = []

        class Client(RTCSctpTransport):  # type: ignore[misc]
            async def _receive_chunk(self, chunk: Any) -> None:
                came.append(type(chunk).__name__)
                await super()._receive_chunk(chunk)

        call = SctpCall()
        call.client_sctp = Client(call.client, 5000)
        await call.connect()
        await call.until(lambda: call.client_sctp.state == "connected")
        self.assertIn("InitAckChunk", came)
        self.assertNotIn("InitChunk", came)
        await call.close()

    @on_loop
    async def test_odd_client(self) -> None:
        """A client that takes odd ids too, and from the lowest (werift), does not meet ours, whoever opens first."""
        call = await self.start()
        ours = call.sctp.open("ours")
        call.client_sctp._data_channel_id = 1
        theirs = call.client_open("theirs")
        await call.until(lambda: theirs.readyState == "open" and "ours" in call.client_channels)
        theirs.send("one")
        ours.send("two")
        await call.until(lambda: bool(call.received and call.client_received))
        self.assertEqual((call.received, call.client_received), ([("theirs", "one")], [("ours", "two")]))
        await call.close()

    @on_loop
    async def test_chunks_that_make_no_sense(self) -> None:
        """What aiortc stumbles over ends the association; DTLS, and so the media, stay."""
        for body in (
            struct.pack("!BBH", 0, 3, 6) + b"\x00\x00" + bytes(2),
            struct.pack("!BBH", 3, 0, 8) + bytes(4),
            struct.pack("!BBHLLHH", 3, 0, 16, 0, 0, 9, 9),
            struct.pack("!BBH", 130, 0, 12) + struct.pack("!HHL", 13, 8, 1),
        ):
            call = await self.start()
            await self.assert_aborted(call, call.send_body(body))

    @on_loop
    async def test_opening_twice(self) -> None:
        """An OPEN for a channel that is open ends the association; an ACK for none is ignored."""
        call = await self.start()
        await call.client_sctp._send(9, 50, b"\x02")
        channel = call.client_open("chat")
        await call.until(lambda: channel.readyState == "open")
        self.assertEqual(call.sctp.state, "connected")
        opening = struct.pack("!BBHLHH", 3, 0, 0, 0, 0, 0)
        await self.assert_aborted(call, call.client_sctp._send(channel.id, 50, opening))

    @on_loop
    async def test_random_packets(self) -> None:
        """Random chunks with the right checksum do nothing worse than end the association."""
        generator = random.Random(11)
        call = await self.start()
        for i in range(3000):
            kind = generator.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 130, 192, 200))
            body = generator.randbytes(generator.randrange(40))
            chunk = struct.pack("!BBH", kind, generator.randrange(8), 4 + len(body)) + body + bytes(-len(body) % 4)
            await call.send_body(chunk)
            await asyncio.sleep(0)
            if call.sctp.state == "closed" or i % 50 == 49:
                self.assertEqual(call.server.state, "connected")
                await call.close()
                call = await self.start()
        await call.close()
        await self.assert_nothing_left()
