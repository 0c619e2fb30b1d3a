"""DTLS against aiortc's own client end, and one test for each private seam of aiortc's DTLS that we use."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from aiortc.rtcdtlstransport import (
    SRTP_AEAD_AES_128_GCM,
    SRTP_AEAD_AES_256_GCM,
    SRTP_AES128_CM_SHA1_80,
    RTCDtlsFingerprint,
    RTCDtlsParameters,
    RTCDtlsTransport,
    SRTPProtectionProfile,
    State,
)
from OpenSSL import SSL
from pylibsrtp import Policy, Session

from orama.sfu import _aiortc
from orama.sfu._aiortc import EARLY_DATAGRAMS, MAX_DATAGRAM, WAITING_DATAGRAMS, DtlsCertificate
from orama.sfu.values import SrtpKeys
from tests.sfu.calls import (
    CERTIFICATE,
    CLIENT_CERTIFICATE,
    FINGERPRINTS,
    LIBSRTP,
    RTCP,
    RTP,
    Call,
    LoopCase,
    SctpCall,
    Wire,
    closed,
    on_loop,
)


class HandshakeTests(LoopCase):
    """DTLS as the passive end."""

    @on_loop
    async def test_keys_of_each_profile(self) -> None:
        """With each profile, what libsrtp of the client protects our keys open, and the other way round."""
        for profile, name in (
            (SRTP_AEAD_AES_128_GCM, "AEAD_AES_128_GCM"),
            (SRTP_AEAD_AES_256_GCM, "AEAD_AES_256_GCM"),
            (SRTP_AES128_CM_SHA1_80, "AES128_CM_SHA1_80"),
        ):
            call = Call()
            call.client._srtp_profiles = [profile]
            await call.connect()
            self.assertEqual(call.states, ["connecting", "connected"])
            (keys,) = call.keys
            self.assertEqual(keys.profile, name)
            self.assertEqual((len(keys.send_key), len(keys.send_salt)), (profile.key_length, profile.salt_length))
            ours = {
                "key": keys.send_key + keys.send_salt,
                "ssrc_type": Policy.SSRC_ANY_OUTBOUND,
                "srtp_profile": LIBSRTP[name],
            }
            theirs = {
                "key": keys.receive_key + keys.receive_salt,
                "ssrc_type": Policy.SSRC_ANY_INBOUND,
                "srtp_profile": LIBSRTP[name],
            }
            sender, receiver = Session(Policy(**ours)), Session(Policy(**theirs))
            self.assertEqual(receiver.unprotect(call.client._tx_srtp.protect(RTP)), RTP)
            self.assertEqual(receiver.unprotect_rtcp(call.client._tx_srtp.protect_rtcp(RTCP)), RTCP)
            self.assertEqual(call.client._rx_srtp.unprotect(sender.protect(RTP)), RTP)
            self.assertEqual(call.client._rx_srtp.unprotect_rtcp(sender.protect_rtcp(RTCP)), RTCP)
            await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_preference(self) -> None:
        """Whatever order the client offers, AES-128-GCM is taken first, then AES-256-GCM, then CM."""
        every = [SRTP_AES128_CM_SHA1_80, SRTP_AEAD_AES_256_GCM, SRTP_AEAD_AES_128_GCM]
        for offered, expected in ((every, "AEAD_AES_128_GCM"), (every[:2], "AEAD_AES_256_GCM")):
            call = Call()
            call.client._srtp_profiles = offered
            await call.connect()
            self.assertEqual(call.keys[0].profile, expected)
            await call.close()

    @on_loop
    async def test_no_profile(self) -> None:
        """Without a profile in common the state is failed, it says why, and there are no keys."""
        call = Call()
        call.client._srtp_profiles = [SRTPProtectionProfile(0, b"SRTP_AES128_CM_SHA1_32", 16, 14)]
        call.server.start(FINGERPRINTS)
        handshake = asyncio.ensure_future(call.client_handshake())
        await call.state("failed")
        self.assertEqual(call.keys, [])
        self.assertIn("profiles", call.server.reason)
        await asyncio.gather(handshake, return_exceptions=True)
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_fingerprint(self) -> None:
        """Any algorithm that we know is good, in either case, if all that we know fit; else the state is failed."""
        by_name = dict(FINGERPRINTS)
        wrong = by_name["sha-256"][:-2] + ("00" if by_name["sha-256"][-2:] != "00" else "01")
        for good, fingerprints in (
            (True, [("sha-512", by_name["sha-512"])]),
            (True, [("SHA-256", by_name["sha-256"].lower())]),
            (True, [("sha-1", "00:00"), ("sha-256", by_name["sha-256"])]),
            (False, [("sha-256", wrong)]),
            (False, [("sha-256", by_name["sha-256"]), ("sha-512", wrong)]),
            (False, [("sha-1", "00:00")]),
            (False, [("sha-256", "")]),
        ):
            call = Call()
            call.server.start(fingerprints)
            handshake = asyncio.ensure_future(call.client_handshake())
            await call.state("connected" if good else "failed")
            await handshake
            self.assertEqual(len(call.keys), good, fingerprints)
            if not good:
                self.assertIn("fingerprint", call.server.reason)
            await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_refused_client_is_told(self) -> None:
        """A client with the wrong certificate, which believes itself connected, is told that it is not."""
        call = Call()
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call.client.on("statechange", lambda: call.client.state == "closed" and over.set_result(None))
        await call.connect([("sha-256", ":".join(["AB"] * 32))])
        await asyncio.wait_for(over, 10)
        self.assertEqual(call.states, ["connecting", "failed"])
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_no_fingerprint(self) -> None:
        """A description without a fingerprint fails at once."""
        call = Call()
        call.server.start([])
        self.assertEqual(call.states, ["failed"])
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_early_datagrams(self) -> None:
        """What comes before the start is kept, so that no timer is waited for; and it is bounded."""
        call = Call()
        handshake = asyncio.ensure_future(call.client_handshake())
        for _ in range(20):
            await asyncio.sleep(0)
        sent = call.wire.sent
        self.assertGreater(sent, 0)
        call.server.start(FINGERPRINTS)
        await handshake
        self.assertEqual(call.client.state, "connected")
        # The ClientHello was not sent again, the rest is the client's one further flight.
        self.assertLessEqual(call.wire.sent, sent + 8)
        await call.close()

        other = Call()
        for _ in range(EARLY_DATAGRAMS + 5):
            other.server.received(b"\x16" * 100)
        other.server.received(b"")
        self.assertEqual(other.server.counters.overflowed, 5)
        await other.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_bounded_queue(self) -> None:
        """What waits for the reader is bounded in number and in size, and counted beyond."""
        call = Call()
        await call.connect()
        for _ in range(WAITING_DATAGRAMS + 200):
            call.server.received(b"\x17" * 50)
        call.server.received(b"\x17" * (MAX_DATAGRAM + 1))
        self.assertGreaterEqual(call.server.counters.overflowed, 199)
        self.assertEqual(call.server.counters.oversized, 1)
        await call.close()

    @on_loop
    async def test_records_in_one_datagram(self) -> None:
        """A flight counts that comes twice in one datagram, with records behind the last that the handshake needs."""
        call = Call()
        call.wire.to_server = lambda datagram: call.server.received((datagram * 2)[:MAX_DATAGRAM])
        await call.connect()
        await call.state("connected")
        await call.close()

    @on_loop
    async def test_lost_datagrams(self) -> None:
        """The handshake comes through when the first flights of both sides are lost."""
        call = Call()
        lost = {True: 0, False: 0}

        def lose(datagram: bytes, up: bool) -> bool:
            lost[up] += 1
            return lost[up] == 1

        call.wire.lose = lose
        await call.connect()
        await call.state("connected")
        self.assertEqual(call.client.state, "connected")
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_random_datagrams(self) -> None:
        """Random records before, during and after the handshake change nothing."""
        generator = random.Random(5)

        def rubbish() -> bytes:
            kind = generator.choice((20, 21, 22, 23, 24, 25, 63))
            return bytes([kind]) + generator.choice((b"", b"\xfe\xfd", b"\xfe\xff")) + generator.randbytes(40)

        call = SctpCall()
        call.server.received(rubbish())
        original = call.wire.to_server

        def spoiled(datagram: bytes) -> None:
            call.server.received(rubbish())
            original(datagram)

        call.wire.to_server = spoiled
        await call.connect()
        for _ in range(100):
            for _ in range(100):
                call.server.received(rubbish())
            await asyncio.sleep(0)
        channel = call.client_open("still")
        await call.until(lambda: channel.readyState == "open")
        channel.send("here")
        await call.until(lambda: ("still", "here") in call.received)
        self.assertEqual(call.states, ["connecting", "connected"])
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_handshake_times_out(self) -> None:
        """A client that never says anything fails after the timeout."""
        call = Call(handshake_timeout=0.05)
        call.server.start(FINGERPRINTS)
        await call.state("failed")
        self.assertIn("timed out", call.server.reason)
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_close(self) -> None:
        """Closing at any time, any number of times, leaves nothing; the client of a connection is told."""
        unused = Call()
        await closed(unused.server.close())
        await closed(unused.server.close())
        self.assertEqual((unused.server.state, unused.states), ("closed", []))
        unused.server.start(FINGERPRINTS)
        unused.server.received(b"\x16" * 20)
        self.assertEqual(unused.server.state, "closed")

        waiting = Call()
        waiting.server.start(FINGERPRINTS)
        await asyncio.sleep(0)
        both = waiting.server.close(), waiting.server.close()
        for each in both:
            await closed(each)

        halfway = Call()
        halfway.wire.lose = lambda datagram, up: not up
        handshake = asyncio.ensure_future(halfway.client_handshake())
        halfway.server.start(FINGERPRINTS)
        await halfway.state("connecting")
        await closed(halfway.server.close())
        handshake.cancel()
        await asyncio.gather(handshake, return_exceptions=True)

        call = Call()
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call.client.on("statechange", lambda: call.client.state == "closed" and over.set_result(None))
        await call.connect()
        await closed(call.server.close())
        await asyncio.wait_for(over, 10)
        self.assertEqual(call.states, ["connecting", "connected"])
        self.assertEqual(call.server.state, "closed")
        await self.assert_nothing_left()

    @on_loop
    async def test_client_closes(self) -> None:
        """close_notify of the client gives closed, and ends SCTP and its channels; no exception is left over."""
        call = SctpCall()
        await call.connect()
        call.client_open("chat")
        ours = call.take(call.sctp.open("ours"))
        await call.until(lambda: "chat" in call.channels)
        ours.send("x" * 100000)
        await call.client.stop()
        await call.state("closed")
        self.assertEqual(call.sctp_states[-1], "closed")
        self.assertEqual(sorted(call.lost), ["chat", "ours"])
        self.assertRaises(ConnectionError, ours.send, "more")
        self.assertRaises(ConnectionError, call.sctp.open, "late")
        await call.close()
        await self.assert_nothing_left()

    @on_loop
    async def test_listener_fails(self) -> None:
        """A listener that raises is logged and does not end the connection."""
        call = Call()

        def fail(keys: SrtpKeys) -> None:
            raise RuntimeError("by the test")

        call.server.on_keys = fail
        await call.connect()
        await call.state("connected")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        await call.close()


class SeamTests(LoopCase):
    """One test for each thing of aiortc's that is not public and that we lean on."""

    def test_version(self) -> None:
        """The version that all of this was tried with."""
        import aiortc

        self.assertEqual(aiortc.__version__.split(".")[:2], ["1", "16"])

    @on_loop
    async def test_dtls_names(self) -> None:
        """RTCDtlsTransport: role, profiles, states, the SSL connection and the task that reads."""
        call = Call()
        dtls = call.server._dtls
        self.assertEqual((dtls._role, dtls._state, dtls._ssl, dtls._task), ("server", State.NEW, None, None))
        self.assertEqual(
            [p.openssl_profile for p in dtls._srtp_profiles],
            [b"SRTP_AEAD_AES_128_GCM", b"SRTP_AEAD_AES_256_GCM", b"SRTP_AES128_CM_SHA1_80"],
        )
        await call.connect()
        self.assertTrue(dtls.encrypted)
        self.assertIsInstance(dtls._ssl, SSL.Connection)
        self.assertIsInstance(dtls._task, asyncio.Task)
        # Our _setup_srtp has taken the place of the one that makes libsrtp sessions.
        self.assertIsNone(dtls._rx_srtp)
        self.assertIsNone(dtls.keys)
        await call.close()

    def test_one_context(self) -> None:
        """All connections of a certificate share an SSL context, which keeps no sessions."""
        certificate = DtlsCertificate().certificate
        context = certificate._create_ssl_context(list(_aiortc.PROFILES))
        self.assertIs(certificate._create_ssl_context(list(_aiortc.PROFILES)), context)
        self.assertIsNot(certificate._create_ssl_context([SRTP_AEAD_AES_128_GCM]), context)
        self.assertEqual(context.set_session_cache_mode(SSL.SESS_CACHE_SERVER), SSL.SESS_CACHE_OFF)

    @on_loop
    async def test_identity_before_keys(self) -> None:
        """aiortc checks the fingerprint before it sets SRTP up, and goes no further when it is wrong."""
        order: list[str] = []

        class Watched(_aiortc.Dtls):
            def _validate_peer_identity(self, parameters: Any) -> None:
                order.append("identity")
                super()._validate_peer_identity(parameters)

            def _setup_srtp(self) -> None:
                order.append("keys")
                super()._setup_srtp()

        for value, expected in ((dict(FINGERPRINTS)["sha-256"], ["identity", "keys"]), ("00", ["identity"])):
            order.clear()
            wire, back = Wire(), Wire()
            wire.to_server, back.to_server = back.queue.put_nowait, wire.queue.put_nowait
            client = RTCDtlsTransport(wire, [CLIENT_CERTIFICATE])  # type: ignore[arg-type]
            client._set_role("client")
            server = Watched(back, [CERTIFICATE.certificate])  # type: ignore[arg-type]
            server._set_role("server")
            await asyncio.gather(
                client.start(RTCDtlsParameters([RTCDtlsFingerprint("sha-256", CERTIFICATE.fingerprint())])),
                server.start(RTCDtlsParameters([RTCDtlsFingerprint("sha-256", value)])),
            )
            self.assertEqual(order, expected)
            for end in (client, server):
                task = end._task
                await end.stop()
                await asyncio.gather(*([task] if task else []), return_exceptions=True)

    @on_loop
    async def test_records_by_the_burst(self) -> None:
        """Many packets leave as a record each and in one go, and records that come in one datagram are all read."""
        call = Call()
        await call.connect()
        got: list[bytes] = []

        class Receiver:
            async def _handle_data(self, data: bytes) -> None:
                got.append(data)
                call.look()

            def handle_burst(self, packets: Sequence[bytes]) -> None:
                got.extend(packets)
                call.look()

        packets = [bytes([i]) * (1 + 37 * i) for i in range(32)]
        call.client._register_data_receiver(Receiver())
        before, call.wire.bursts = len(call.wire.bursts), []
        call.server._dtls.send_burst(packets)
        self.assertEqual([len(burst) for burst in call.wire.bursts], [32])
        await call.until(lambda: len(got) == 32)
        self.assertEqual(got, packets)
        self.assertGreater(before, 0)

        got.clear()
        call.server._dtls._register_data_receiver(Receiver())
        await call.client._send_data(b"first")
        await call.until(lambda: got == [b"first"])
        ssl, records = call.client._ssl, b""
        assert ssl is not None
        for packet in (b"second", b"third", b"fourth"):
            ssl.send(packet)
            records += ssl.bio_read(2048)
        call.server.received(records)
        await call.until(lambda: len(got) == 4)
        self.assertEqual(got[1:], [b"second", b"third", b"fourth"])
        await call.close()

    @on_loop
    async def test_data_receiver(self) -> None:
        """DTLS hands what it decrypts to the one receiver that is registered."""
        call = Call()
        await call.connect()
        got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        class Receiver:
            def handle_burst(self, packets: Sequence[bytes]) -> None:
                got.set_result(packets[0])

        receiver = Receiver()
        call.server._dtls._register_data_receiver(receiver)
        await call.client._send_data(b"decrypted")
        self.assertEqual(await asyncio.wait_for(got, 10), b"decrypted")
        call.server._dtls._unregister_data_receiver(receiver)
        self.assertIsNone(call.server._dtls._data_receiver)
        await call.close()
