"""SCTP and data channels against aiortc's own client end, and one test for each private seam of its SCTP."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from aiortc.rtcdatachannel import RTCDataChannel, RTCDataChannelParameters
from aiortc.rtcsctptransport import InitChunk, RTCSctpCapabilities, RTCSctpTransport, SackChunk

from orama.sfu import _sctp
from orama.sfu._sctp import MAX_MESSAGE_SIZE
from orama.sfu._sctp_channels import FIRST_STREAM, SctpTransport
from orama.sfu._sctp_inbound import MAX_STREAMS, WINDOW
from tests.sfu.calls import Call, LoopCase, SctpCall, closed, on_loop


class DataTests(LoopCase):
    """SCTP and data channels."""

    @on_loop
    async def test_client_opens(self) -> None:
        """A client's channel comes with label, protocol and reliability, and carries text, binary and nothing."""
        call = SctpCall()
        await call.connect()
        for label, parameters in (
            ("reliable", {}),
            ("größe 📦", {"protocol": "jsön", "ordered": False}),
            ("lossy", {"ordered": False, "maxRetransmits": 0}),
            ("timed", {"maxPacketLifeTime": 500}),
        ):
            theirs = call.client_open(label, **parameters)
            await call.until(lambda theirs=theirs: theirs.readyState == "open")
        lossy, timed, reliable = (call.channels[label] for label in ("lossy", "timed", "reliable"))
        self.assertEqual((call.channels["größe 📦"].protocol, call.channels["größe 📦"].ordered), ("jsön", False))
        self.assertEqual((lossy.ordered, lossy.max_retransmits, lossy.max_packet_life_time), (False, 0, None))
        self.assertEqual((timed.ordered, timed.max_retransmits, timed.max_packet_life_time), (True, None, 500))
        self.assertEqual((reliable.ordered, reliable.max_retransmits), (True, None))
        self.assertEqual(reliable.id % 2, 0)
        messages: list[str | bytes] = ["text", b"\x00\xff", "", b"", "größe 📦"]
        for message in messages:
            call.client_channels["reliable"].send(message)
        await call.until(lambda: len(call.received) == len(messages))
        self.assertEqual(call.received, [("reliable", message) for message in messages])
        for message in messages:
            reliable.send(message)
        await call.until(lambda: len(call.client_received) == len(messages))
        self.assertEqual(call.client_received, [("reliable", message) for message in messages])
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_we_open_early(self) -> None:
        """Channels opened and used before DTLS is up have their odd ids at once and lose nothing, in order."""
        call = SctpCall()
        call.sctp.start()
        first = call.sctp.open("größe 📦", protocol="prötocol")
        second = call.sctp.open("lossy", ordered=False, max_retransmits=0)
        self.assertEqual((first.id, second.id), (FIRST_STREAM, FIRST_STREAM + 2))
        for i in range(5):
            first.send(f"{i}")
        second.send(b"unordered")
        self.assertGreater(first.buffered, 0)
        self.assertEqual(call.sctp.buffered, first.buffered + second.buffered)
        # Beside the messages each channel's opening waits.
        self.assertEqual((call.sctp.queued, second.unopened), (2 + 6, 1))
        await call.connect()
        await call.until(lambda: len(call.client_received) == 6)
        ordered = [data for label, data in call.client_received if label == "größe 📦"]
        self.assertEqual(ordered, ["0", "1", "2", "3", "4"])
        theirs = call.client_channels["größe 📦"]
        self.assertEqual((theirs.protocol, theirs.id), ("prötocol", FIRST_STREAM))
        lossy = call.client_channels["lossy"]
        self.assertEqual((lossy.ordered, lossy.maxRetransmits, lossy.id), (False, 0, FIRST_STREAM + 2))
        self.assertEqual(call.sctp.buffered, 0)
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_late_start(self) -> None:
        """SCTP can begin long after DTLS is up (a data m-line that comes late); starting twice is once."""
        call = Call()
        await call.connect()
        sctp = SctpTransport(call.server)
        self.assertRaises(ValueError, SctpTransport, call.server)
        sctp.on_state = lambda state: call.look()
        client = RTCSctpTransport(call.client, 5000)
        await client.start(RTCSctpCapabilities(MAX_MESSAGE_SIZE), 5000)
        sctp.start()
        sctp.start()
        await call.until(lambda: sctp.state == "connected")
        await closed(sctp.close())
        self.assertEqual(sctp.state, "closed")
        SctpTransport(call.server)
        await client.stop()
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_send_and_close(self) -> None:
        """What was sent before a close arrives, also when the client had not acknowledged the channel yet."""
        call = SctpCall()
        await call.connect()
        for label, ordered in (("a", True), ("b", False)):
            channel = call.sctp.open(label, ordered=ordered)
            channel.send("last words")
            channel.close()
            channel.close()
        await call.until(lambda: set(call.client_lost) == {"a", "b"})
        self.assertEqual(sorted(call.client_received), [("a", "last words"), ("b", "last words")])
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_longest_message(self) -> None:
        """262,144 bytes pass both ways; one more is refused to us, and closes the channel of a client that sends it."""
        call = SctpCall()
        await call.connect()
        call.client_open("big")
        await call.until(lambda: "big" in call.channels and call.client_channels["big"].readyState == "open")
        longest = bytes(range(256)) * 1024
        call.client_channels["big"].send(longest)
        await call.until(lambda: len(call.received) == 1)
        self.assertEqual(call.received, [("big", longest)])
        call.channels["big"].send(longest)
        await call.until(lambda: len(call.client_received) == 1)
        self.assertEqual(call.client_received, [("big", longest)])
        self.assertRaises(ValueError, call.channels["big"].send, longest + b"x")
        self.assertRaises(ValueError, call.sctp.open("new").send, longest + b"x")
        self.assertRaises(ValueError, call.sctp.open("text").send, "ö" * 131073)

        call.client_sctp._remote_max_message_size = 0
        call.client_channels["big"].send(longest + b"x")
        await call.until(lambda: call.client_lost == ["big"])
        self.assertEqual(call.received, [("big", longest)])
        self.assertEqual(call.sctp.counters.oversized, 1)
        self.assertEqual(call.sctp.state, "connected")
        await call.close()

    @on_loop
    async def test_bad_names(self) -> None:
        """A channel whose names are not UTF-8, or not as long as it says, opens with what can be read of them."""
        call = SctpCall()
        await call.connect()
        for i, (lengths, names) in enumerate(
            (((2, 1), b"\xffa\xff"), ((9, 9), b"abc"), ((0, 0), b""), ((3, 0), b"a\xc3\xa4"))
        ):
            opening = struct.pack("!BBHLHH", 3, 0, 0, 0, *lengths) + names
            await call.client_sctp._send(2 * i, 50, opening)
        await call.until(lambda: len(call.channels) == 4)
        found = [(channel.label, channel.protocol) for channel in call.channels.values()]
        self.assertEqual(found, [("\ufffda", "\ufffd"), ("abc", ""), ("", ""), ("aä", "")])
        await call.close()

    @on_loop
    async def test_bad_text(self) -> None:
        """Text that is not UTF-8 closes its channel, and nothing else."""
        call = SctpCall()
        await call.connect()
        channel = call.client_open("text")
        await call.until(lambda: channel.readyState == "open")
        await call.client_sctp._send(channel.id, 51, b"\xff\xfe")
        await call.until(lambda: call.client_lost == ["text"])
        self.assertEqual((call.received, call.sctp.counters.bad_text), ([], 1))
        self.assertEqual(call.sctp.state, "connected")
        await call.close()

    @on_loop
    async def test_buffered(self) -> None:
        """What waits for a client that takes nothing is visible; aborting the channel gives it up."""
        call = SctpCall()
        await call.connect()
        ours = call.sctp.open("ours")
        await call.until(lambda: "ours" in call.client_channels)
        call.wire.lose = lambda datagram, up: not up
        for _ in range(20):
            ours.send(b"x" * 100_000)
        await asyncio.sleep(0)
        self.assertGreater(ours.buffered, 1_700_000)
        self.assertEqual(call.sctp.buffered, ours.buffered)
        ours.abort()
        self.assertEqual((ours.buffered, call.sctp.buffered), (0, 0))
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_close_with_much_waiting(self) -> None:
        """A channel of ours that is closed sends what waits first; another one that is closed does not wait for it."""
        call = SctpCall()
        await call.connect()
        ours, other = (call.take(call.sctp.open(label)) for label in ("ours", "other"))
        await call.until(lambda: len(call.client_channels) == 2)
        for _ in range(10):
            ours.send(b"x" * 100_000)
        ours.close()
        other.close()
        await call.until(lambda: len(call.lost) == 2)
        self.assertEqual(call.lost, ["other", "ours"])
        self.assertEqual(sum(len(data) for _, data in call.client_received), 1_000_000)
        await call.close()

    @on_loop
    async def test_late_copy_of_init(self) -> None:
        """An INIT that comes again when the association is up changes nothing."""
        call = SctpCall()
        await call.connect()
        channel = call.client_open("chat")
        await call.until(lambda: channel.readyState == "open")
        copy = InitChunk()
        copy.initiate_tag = call.client_sctp._local_verification_tag
        copy.advertised_rwnd, copy.outbound_streams, copy.inbound_streams = WINDOW, 9, 9
        copy.initial_tsn = (call.client_sctp._local_tsn - 1000) % 2**32
        tag, call.client_sctp._remote_verification_tag = call.client_sctp._remote_verification_tag, 0
        await call.send_raw(copy)
        call.client_sctp._remote_verification_tag = tag
        channel.send("still here")
        await call.until(lambda: call.received == [("chat", "still here")])
        await call.close()

    @on_loop
    async def test_client_closes_with_much_waiting(self) -> None:
        """A channel that the client closes is gone at once, with all that waits for it; the others go on."""
        call = SctpCall()
        await call.connect()
        ours, other = (call.take(call.sctp.open(label)) for label in ("ours", "other"))
        await call.until(lambda: len(call.client_channels) == 2)
        for _ in range(40):
            ours.send(b"x" * 100_000)
        call.client_channels["ours"].close()
        await call.until(lambda: call.lost == ["ours"])
        self.assertLess(sum(len(data) for _, data in call.client_received), 2_000_000)
        other.send("still")
        await call.until(lambda: ("other", "still") in call.client_received)
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_held_back(self) -> None:
        """What is held of a client's messages leaves its window, and the client is told when the window opens again."""
        told: list[int] = []

        class Listening(RTCSctpTransport):
            async def _receive_sack_chunk(self, chunk: SackChunk) -> None:
                told.append(chunk.advertised_rwnd)
                call.look()
                await super()._receive_sack_chunk(chunk)

        call = SctpCall(Listening)
        await call.connect()
        channel = call.client_open("held")
        await call.until(lambda: channel.readyState == "open")
        call.sctp.hold(WINDOW - 1000)
        channel.send("x")
        await call.until(lambda: 1000 in told)
        call.sctp.hold(-1000)
        call.sctp.hold(2000 - WINDOW)
        await call.until(lambda: told[-1] == WINDOW)
        await call.close()

    @on_loop
    async def test_dead_client(self) -> None:
        """A client that acknowledges nothing for the timeout is given up: the association closes."""
        call = SctpCall(acknowledge_timeout=0.1)
        await call.connect()
        ours = call.take(call.sctp.open("ours"))
        await call.until(lambda: "ours" in call.client_channels and call.client_channels["ours"].readyState == "open")
        call.sctp._sctp._out.timeout = 0.05
        call.wire.lose = lambda datagram, up: True
        ours.send("anybody?")
        await call.until(lambda: call.sctp.state == "closed")
        self.assertEqual(call.lost, ["ours"])
        self.assertEqual(call.sctp.counters.timed_out, 1)
        self.assertEqual(call.server.state, "connected")
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_streams_run_out(self) -> None:
        """When all identifiers are taken, opening one more says so; a closed one can be had again."""
        call = SctpCall()
        await call.connect()
        opened = [call.sctp.open(f"{i}") for i in range(MAX_STREAMS // 2)]
        self.assertEqual({each.id for each in opened}, set(range(1, MAX_STREAMS, 2)))
        self.assertRaises(ConnectionError, call.sctp.open, "more")
        await call.until(lambda: len(call.client_channels) == MAX_STREAMS // 2)
        call.take(opened[0]).close()
        await call.until(lambda: call.lost == ["0"])
        self.assertEqual(call.sctp.open("again").id, opened[0].id)
        await call.close()

    @on_loop
    async def test_client_aborts(self) -> None:
        """ABORT of the client closes for good: an INIT that follows does not revive the association."""
        call = SctpCall()
        await call.connect()
        await call.client_sctp._abort()
        await call.until(lambda: call.sctp.state == "closed")
        again = RTCSctpTransport(call.client, 5000)
        call.client._data_receiver = None
        await again.start(RTCSctpCapabilities(MAX_MESSAGE_SIZE), 5000)
        for _ in range(20):
            await asyncio.sleep(0)
        self.assertEqual((call.sctp.state, again.state), ("closed", "connecting"))
        self.assertEqual(call.server.state, "connected")
        await again.stop()
        await call.close()
        await self.assert_nothing_left()


class SeamTests(LoopCase):
    """One test for each thing of aiortc's SCTP that is not public and that we lean on."""

    @on_loop
    async def test_sctp_names(self) -> None:
        """RTCSctpTransport: the state, counters and queues that our limits read and write."""
        call = SctpCall()
        await call.connect()
        sctp = call.sctp._sctp
        self.assertEqual(sctp._association_state, sctp.State.ESTABLISHED)
        self.assertTrue(sctp.is_server)
        self.assertEqual(sctp._advertised_rwnd, WINDOW)
        self.assertEqual(sctp._inbound_streams_max, MAX_STREAMS)
        self.assertEqual(sctp._outbound_streams_count, MAX_STREAMS)
        self.assertEqual(call.client_sctp._outbound_streams_count, MAX_STREAMS)
        self.assertEqual((dict(sctp._data_channels), list(sctp._data_channel_queue)), ({}, []))
        self.assertEqual((sctp._reconfig_queue, sctp._reconfig_request, sctp._reconfig_deferred), ([], None, None))
        self.assertTrue(sctp._remote_partial_reliability)
        # What aiortc would keep is never used, but for the numbers that it asks for.
        self.assertEqual((len(sctp._outbound_queue), len(sctp._sent_queue)), (0, 0))
        self.assertEqual(sctp._last_received_tsn, (call.client_sctp._local_tsn - 1) % 2**32)
        self.assertEqual(call.client_sctp._last_received_tsn, (sctp._local_tsn - 1) % 2**32)
        await call.close()
        self.assertIsNone(sctp._t1_handle or sctp._t2_handle or sctp._t3_handle or sctp._reconfig_handle)
        self.assertIsNone(sctp._timer)

    @on_loop
    async def test_sctp_hooks(self) -> None:
        """RTCSctpTransport calls each method that we override."""
        called: set[str] = set()
        hooks = (
            "_send_chunk",
            "_local_tsn",
            "_last_received_tsn",
            "_ssthresh",
            "_transmit_reconfig",
            "_set_state",
            "_data_channel_open",
            "_data_channel_close",
            "_data_channel_flush",
        )

        class Watched(_sctp.Sctp):
            def __getattribute__(self, name: str) -> Any:
                if name in hooks:
                    called.add(name)
                return super().__getattribute__(name)

            def __setattr__(self, name: str, value: Any) -> None:
                if name in hooks:
                    called.add(name)
                super().__setattr__(name, value)

        for name in hooks:
            self.assertIn(name, vars(_sctp.Sctp))
        call = SctpCall()
        transport = call.sctp
        watched = Watched(
            call.server._dtls, transport.counters, transport._changed, transport._delivered, transport._wake, 30
        )
        transport._sctp = watched
        called.clear()
        await call.connect()
        channel = call.take(transport.open("ours"))
        await call.until(lambda: "ours" in call.client_channels)
        channel.close()
        await call.until(lambda: call.lost == ["ours"])
        self.assertEqual(called, set(hooks))
        await call.close()

    @on_loop
    async def test_streams_begin_anew(self) -> None:
        """RTCSctpTransport drops what it knows of a stream that was reset, in each direction, where we stand by."""
        call = SctpCall()
        await call.connect()
        for _ in range(2):
            ours = call.take(call.sctp.open("ours"))
            await call.until(lambda: "ours" in call.client_channels)
            ours.send("1")
            ours.send("2")
            await call.until(lambda: len(call.client_received) == 2)
            call.client_channels["ours"].send("3")
            await call.until(lambda: call.received == [("ours", "3")])
            ours.close()
            await call.until(lambda: call.lost == ["ours"] and call.client_lost == ["ours"])
            for log in (call.client_received, call.received, call.lost, call.client_lost):
                log.clear()
            call.client_channels.clear()
        await call.close()

    @on_loop
    async def test_loose_tasks(self) -> None:
        """aiortc sends from tasks that nobody awaits: what they meet on a closed DTLS must not surface there."""
        call = SctpCall()
        await call.connect()
        ours = call.sctp.open("ours")
        await call.until(lambda: "ours" in call.client_channels)
        dtls, sctp = call.server._dtls, call.sctp._sctp
        call.wire.lose = lambda datagram, up: not up
        ours.send("into the void")
        late: list[int] = []

        def timer() -> None:
            if dtls.state == "closed":
                late.append(sctp._out.flight)
                sctp._out.expire(sctp._out.deadline)
                sctp.flush()

        dtls.on("statechange", timer)
        await call.client.stop()
        await call.state("closed")
        self.assertEqual(late, [len("into the void")])
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_opening_counts_characters(self) -> None:
        """aiortc still gives lengths in characters, so that ours still has to be there; it queues the OPEN last."""
        call = SctpCall()
        channel = RTCDataChannel(call.client_sctp, RTCDataChannelParameters(label="größe"))
        queued, kind, message = call.client_sctp._data_channel_queue[-1]
        self.assertEqual((queued, kind), (channel, 50))
        self.assertEqual(struct.unpack_from("!HH", message, 8), (5, 0))
        call.sctp.open("größe")
        self.assertEqual(len(call.sctp._sctp._data_channel_queue), 0)
        self.assertEqual(call.sctp.buffered, 12 + len("größe".encode()))
        await call.close()
