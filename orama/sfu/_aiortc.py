"""DTLS by aiortc: what knows the private seams of ``rtcdtlstransport``, and the bridge out of asyncio.

aiortc's transports are coroutines over an ICE transport of their own kind; here they run over datagrams
that the media port hands in, always as the DTLS server (RFC 8842, 5.3: ``passive``), and speak to the rest
of the SFU by plain calls and callables, from within the reactor. Media never enters aiortc: DTLS gives up
its SRTP keys (RFC 5764, 4.2), and that is all. Once it is up, records are read and written many at a time.
The version is pinned; a test stands for each seam.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeAlias, cast

from aiortc.rtcdtlstransport import (
    SRTP_AEAD_AES_128_GCM,
    SRTP_AEAD_AES_256_GCM,
    SRTP_AES128_CM_SHA1_80,
    RTCCertificate,
    RTCDtlsFingerprint,
    RTCDtlsParameters,
    RTCDtlsTransport,
    SRTPProtectionProfile,
    State,
)
from attrs import define
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from orama.sfu._turns import turns_of
from orama.sfu.values import SrtpKeys

#: ``(algorithm, value)`` of an ``a=fingerprint`` line.
Fingerprint: TypeAlias = tuple[str, str]

#: In the order of our liking; the server's order decides (RFC 5764, 4.1.1). AES-128-GCM costs least.
PROFILES: tuple[SRTPProtectionProfile, ...] = (SRTP_AEAD_AES_128_GCM, SRTP_AEAD_AES_256_GCM, SRTP_AES128_CM_SHA1_80)
#: What may wait before the description with the fingerprint is here: a ClientHello of two datagrams,
#: sent a few times over.
EARLY_DATAGRAMS = 16
#: What may wait for aiortc's reader. An SCTP window of 1 MiB is some 900 datagrams.
WAITING_DATAGRAMS = 1024
#: No DTLS record of a WebRTC client is longer than its path's MTU.
MAX_DATAGRAM = 2048
#: Seconds from the start of DTLS to its keys.
HANDSHAKE_TIMEOUT = 30.0
#: Datagrams that are read before others have their turn: some 1 ms.
PIECE = 32
#: The header of a DTLS 1.2 record (RFC 6347, 4.1), its type for what is not of DTLS itself, and the longest record.
RECORD_HEADER = 13
APPLICATION_DATA = 23
MAX_RECORD = 2048

#: OpenSSL's SSL_MODE_RELEASE_BUFFERS, which pyOpenSSL has no name for: 7 kB less for each idle connection.
RELEASE_BUFFERS = 0x10

_log = Logger()


class _Certificate(RTCCertificate):
    """One that makes an SSL context once for all connections, since each takes 22 kB.

    No session outlives its connection: a cache would hold 20,480, and one that is taken up again shows no certificate.
    """

    def __init__(self, key: Any, cert: Any) -> None:
        super().__init__(key, cert)
        self._contexts: dict[tuple[SRTPProtectionProfile, ...], SSL.Context] = {}

    def _create_ssl_context(self, srtp_profiles: list[SRTPProtectionProfile]) -> SSL.Context:
        context = self._contexts.get(tuple(srtp_profiles))
        if context is None:
            context = self._contexts[tuple(srtp_profiles)] = super()._create_ssl_context(srtp_profiles)
            context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
            context.set_mode(RELEASE_BUFFERS)
        return context


class DtlsCertificate:
    """The certificate that all DTLS transports of the process show. It proves itself by its fingerprint."""

    def __init__(self) -> None:
        self._certificate = _Certificate.generateCertificate()
        self._fingerprints = {f.algorithm: f.value for f in self._certificate.getFingerprints()}

    def fingerprint(self) -> str:
        """SHA-256 as in ``a=fingerprint:sha-256 …`` (RFC 8122): upper-case hex with colons."""
        return self._fingerprints["sha-256"]

    @property
    def certificate(self) -> RTCCertificate:
        return self._certificate


@define(eq=False)
class DtlsCounters:
    """Datagrams that went no further."""

    #: More than may wait before the start, or for the reader.
    overflowed: int = 0
    #: Longer than any client's.
    oversized: int = 0
    #: Outgoing ones that found the transport closed.
    unsent: int = 0


def _ignore(*_: object) -> None:
    """Nobody listens."""


def at_once(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run to its end one of aiortc's coroutines in which, over our datagrams, nothing waits.

    :raises RuntimeError: something did.
    """
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("aiortc waits where it did not")


class _Datagrams:
    """What aiortc takes for an ICE transport: ``_recv``, ``_send`` and a role."""

    #: ICE-lite is never controlling; aiortc looks at it for DTLS role "auto" and in statistics alone.
    role = "controlled"

    def __init__(self, send: Callable[[Sequence[bytes]], None], counters: DtlsCounters) -> None:
        self._deliver = send
        self._counters = counters
        self._waiting: deque[bytes] = deque()
        self._reader: asyncio.Future[bytes] | None = None
        #: Called when there is something to :meth:`burst`, once there is no handshake any more.
        self._wake: Callable[[], None] | None = None
        self._end: asyncio.Future[None] | None = None
        self._closed = False
        self.limit = EARLY_DATAGRAMS

    def received(self, datagram: bytes) -> None:
        if self._closed or not datagram:
            return
        if len(datagram) > MAX_DATAGRAM:
            self._counters.oversized += 1
        elif self._reader is not None and not self._reader.done():
            self._reader.set_result(datagram)
        elif len(self._waiting) < self.limit:
            self._waiting.append(datagram)
            if self._wake is not None:
                self._wake()
        else:
            self._counters.overflowed += 1

    def close(self) -> None:
        """Whoever reads gets a ConnectionError, which aiortc takes for the end."""
        self._closed = True
        self._deliver, self._wake = _ignore, None
        self._waiting.clear()
        for waiter in (self._reader, self._end):
            if waiter is not None and not waiter.done():
                waiter.set_exception(ConnectionError("closed"))
        self._end = None  # its exception's traceback leads back here

    async def _recv(self) -> bytes:
        if self._waiting:
            return self._waiting.popleft()
        if self._closed:
            raise ConnectionError("closed")
        self._reader = asyncio.get_running_loop().create_future()
        try:
            return await self._reader
        finally:
            self._reader = None

    async def last(self, wake: Callable[[], None]) -> None:
        """Call *wake* for all that comes, until the end.

        :raises ConnectionError: the end.
        """
        self._wake = wake
        if self._waiting:
            wake()
        if self._closed:
            raise ConnectionError("closed")
        self._end = asyncio.get_running_loop().create_future()
        await self._end

    def burst(self) -> list[bytes]:
        """What waits, up to a piece."""
        waiting = self._waiting
        return [waiting.popleft() for _ in range(min(len(waiting), PIECE))]

    @property
    def more(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)

    async def _send(self, datagram: bytes) -> None:
        self.send((datagram,))

    def send(self, datagrams: Sequence[bytes]) -> None:
        if self._closed:
            self._counters.unsent += len(datagrams)
            raise ConnectionError("closed")
        self._deliver(datagrams)


class BurstReceiver(Protocol):
    """What takes decrypted packets as they were read, many at a time."""

    def handle_burst(self, packets: Sequence[bytes]) -> None: ...


class Dtls(RTCDtlsTransport):  # type: ignore[misc]
    """aiortc's DTLS with the keys taken out before libsrtp gets them, and records by the burst.

    aiortc takes two turns of the loop and an exception of OpenSSL's for each datagram.
    """

    keys: SrtpKeys | None = None
    #: Whether no flight of the handshake can have to be sent again.
    _settled = False
    #: Records behind the last one that the handshake was given.
    _rest = b""

    async def _recv_next(self) -> None:
        ssl = self._ssl
        assert ssl is not None
        if not self.encrypted:
            await self._feed(ssl)
            return
        if self._rest:
            self._datagrams.received(self._rest)
            self._rest = b""
        if not self._settled:
            self._settled = ssl.DTLSv1_get_timeout() is None
        if not self._settled:
            await super()._recv_next()
            return
        # From here on this task waits for the end alone, and what comes is read by turns.
        turns = turns_of(asyncio.get_running_loop())
        try:
            await self._datagrams.last(lambda: turns.enter(self.read))
        finally:
            turns.leave(self.read)

    async def _feed(self, ssl: SSL.Connection) -> None:
        """Give the handshake its next record, or know that none has come in time.

        By whole datagrams, and read from as aiortc does, OpenSSL is left with a buffer for reading, or with one for
        what was handed from one epoch to the next: 16 kB for as long as a client sends no data.
        """
        datagram, self._rest = self._rest, b""
        if not datagram:
            try:
                datagram = await asyncio.wait_for(self.transport._recv(), ssl.DTLSv1_get_timeout())
            except TimeoutError:
                ssl.DTLSv1_handle_timeout()
                await self._write_ssl()
                return
        end = RECORD_HEADER + int.from_bytes(datagram[11:13])
        if datagram[0] <= APPLICATION_DATA:  # in DTLS 1.3 others come, which fill their datagram
            datagram, self._rest = datagram[:end], datagram[end:]
        ssl.bio_write(datagram)
        try:
            ssl.do_handshake()
        except SSL.Error:
            pass  # it wants more, or will say so again
        await self._write_ssl()

    @property
    def _datagrams(self) -> _Datagrams:
        return cast(_Datagrams, self.transport)

    def read(self) -> bool:
        """Take a piece of what has come; whether there is more."""
        datagrams = self._datagrams
        packets: list[bytes] = []
        over = False
        for datagram in datagrams.burst():
            try:
                self._open(datagram, packets)
            except SSL.ZeroReturnError:
                over = True
            if datagram[0] != APPLICATION_DATA:
                at_once(self._write_ssl())
        receiver = cast(BurstReceiver | None, self._data_receiver)
        if packets and receiver is not None:
            receiver.handle_burst(packets)
        if over:
            datagrams.close()
        return datagrams.more

    def _open(self, datagram: bytes, packets: list[bytes]) -> None:
        """Decrypt the records of *datagram*; nearly always there is one, and none needs no asking for more."""
        ssl = self._ssl
        assert ssl is not None
        ssl.bio_write(datagram)
        single = int.from_bytes(datagram[11:13]) + RECORD_HEADER >= len(datagram)
        try:
            packets.append(ssl.recv(MAX_RECORD))
            while not single:
                packets.append(ssl.recv(MAX_RECORD))
        except SSL.ZeroReturnError:
            raise
        except SSL.Error:
            return

    def send_burst(self, packets: Sequence[bytes]) -> None:
        """Encrypt *packets*, and send them at once.

        :raises ConnectionError: not connected.
        :raises SSL.Error: OpenSSL will not.
        """
        ssl = self._ssl
        if self._state != State.CONNECTED or ssl is None:
            raise ConnectionError("not connected")
        for packet in packets:
            ssl.send(packet)
        # One read for all (2.3 µs a packet less): where a record ends its header says.
        records = ssl.bio_read(MAX_RECORD * len(packets))
        datagrams, at = [], 0
        while at < len(records):
            end = at + RECORD_HEADER + int.from_bytes(records[at + 11 : at + 13])
            datagrams.append(records[at:end])
            at = end
        self._datagrams.send(datagrams)

    def _setup_srtp(self) -> None:
        assert self._ssl is not None
        name = self._ssl.get_selected_srtp_profile()
        profile = next((p for p in self._srtp_profiles if p.openssl_profile == name), None)
        if profile is None:
            self._set_state(State.FAILED)
            return
        key, salt = profile.key_length, profile.salt_length
        # RFC 5764, 4.2: client key, server key, client salt, server salt. We are the server.
        block = self._ssl.export_keying_material(b"EXTRACTOR-dtls_srtp", 2 * (key + salt))
        self.keys = SrtpKeys(
            profile=name.decode().removeprefix("SRTP_"),
            receive_key=block[:key],
            send_key=block[key : 2 * key],
            receive_salt=block[2 * key : 2 * key + salt],
            send_salt=block[2 * key + salt :],
        )

    async def refuse(self) -> None:
        """Tell a client that believes itself connected that it is not: close_notify."""
        assert self._ssl is not None
        try:
            self._ssl.shutdown()
            await self._write_ssl()
        except (SSL.Error, ConnectionError):
            return

    def pump(self) -> asyncio.Future[None] | None:
        """The task that reads, once connected."""
        task: asyncio.Future[None] | None = self._task
        return task


class Carried(Protocol):
    """What an SCTP transport is to the DTLS transport under it."""

    @property
    def state(self) -> str: ...
    def carried(self) -> None:
        """DTLS is up."""

    async def stop(self) -> None: ...


class DtlsTransport:
    """One client's DTLS association. We are the server.

    ``on_state`` is called with ``connecting``, ``connected``, ``failed`` or ``closed``; ``on_keys`` once,
    just before ``connected``. Neither is called again after :meth:`close`.

    :param send: gets datagrams for the client, each time those that can leave together.
    """

    def __init__(
        self,
        certificate: DtlsCertificate,
        send: Callable[[Sequence[bytes]], None],
        *,
        counters: DtlsCounters | None = None,
        profiles: Iterable[SRTPProtectionProfile] = PROFILES,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
    ) -> None:
        self.counters = DtlsCounters() if counters is None else counters
        self.on_keys: Callable[[SrtpKeys], None] = _ignore
        self.on_state: Callable[[str], None] = _ignore
        self.reason = ""
        self._certificate = certificate
        self._loop = asyncio.get_event_loop()
        self._datagrams = _Datagrams(send, self.counters)
        self._dtls = Dtls(cast(Any, self._datagrams), [certificate.certificate])
        self._dtls._set_role("server")
        self._dtls._srtp_profiles = list(profiles)
        self._dtls.on("statechange", self._changed)
        self._timeout = handshake_timeout
        self._state = "new"
        self._started = False
        self._handshake: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._sctp: Carried | None = None

    @property
    def state(self) -> str:
        """``new``, ``connecting``, ``connected``, ``failed`` or ``closed``."""
        return self._state

    def fingerprint(self) -> str:
        """Ours, SHA-256."""
        return self._certificate.fingerprint()

    def start(self, remote_fingerprints: list[Fingerprint]) -> None:
        """Begin, now that the client's fingerprints are known; what came before is read first.

        Without a fingerprint that we can check the state becomes ``failed`` at once. A second start does nothing.
        """
        if self._started or self._ending is not None:
            return
        self._started = True
        self._datagrams.limit = WAITING_DATAGRAMS
        if not remote_fingerprints:
            self._fail("no fingerprint")
            return
        parameters = RTCDtlsParameters([RTCDtlsFingerprint(a, v) for a, v in remote_fingerprints], role="client")
        self._handshake = self._loop.create_task(self._shake(parameters))

    def received(self, datagram: bytes) -> None:
        """A datagram with a first byte of 20 to 63 from the client's proved address."""
        self._datagrams.received(datagram)

    def close(self) -> Deferred[None]:
        """Say close_notify and end. Fires when nothing of it is left; any number of calls is good."""
        self.on_keys = self.on_state = _ignore
        return self._end()

    def _end(self) -> Deferred[None]:
        if self._ending is None:
            self._ending = self._loop.create_task(self._finish())
        done: Deferred[None] = Deferred()
        self._ending.add_done_callback(lambda task: done.callback(None))
        return done

    async def _shake(self, parameters: RTCDtlsParameters) -> None:
        dtls = self._dtls
        try:
            async with asyncio.timeout(self._timeout):
                await dtls.start(parameters)
        except TimeoutError:
            self._fail("handshake timed out")
        except Exception as error:  # OpenSSL gives up in several ways
            self._fail(f"handshake failed: {type(error).__name__}")
        else:
            if dtls.state == "failed":
                if dtls.encrypted:
                    await dtls.refuse()
                    self._fail("the fingerprint or the SRTP profiles do not match")
                else:
                    self._fail("handshake failed")
        if self._state == "failed":
            self._datagrams.close()

    def _changed(self) -> None:
        """aiortc's state has changed; a failure is told with its reason once the handshake task is through."""
        state = self._dtls.state
        if state == "connecting":
            self._tell(state)
        elif state == "connected" and self._dtls.keys is not None:
            keys, self._dtls.keys = self._dtls.keys, None
            self._call(self.on_keys, keys)
            self._tell(state)
            if self._sctp is not None:
                self._sctp.carried()
        elif state == "closed" and self._ending is None:
            self._end()

    def _fail(self, reason: str) -> None:
        if self._ending is None:
            self.reason = reason
            _log.info("DTLS failed: {reason}", reason=reason)
            self._tell("failed")

    def _tell(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._call(self.on_state, state)

    def _call(self, listener: Callable[..., None], *arguments: object) -> None:
        try:
            listener(*arguments)
        except Exception:
            _log.failure("a listener of DTLS failed")

    async def _finish(self) -> None:
        """Stop SCTP before DTLS, and wait for every task (what they raise at the end is of no interest)."""
        pump = self._dtls.pump()
        try:
            if self._sctp is not None:
                await self._sctp.stop()
            await self._dtls.stop()
        except Exception:
            _log.failure("closing DTLS failed")
        self._datagrams.close()
        tasks = [task for task in (pump, self._handshake) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        # aiortc's own loose tasks (flushes) run to their end in one turn, since nothing in them waits.
        await asyncio.sleep(0)
        self._dtls.remove_all_listeners()
        self._sctp = None
        self._tell("closed")

    # ---- what an SCTP transport needs -------------------------------------------------------------------

    def carry(self, sctp: Carried) -> Dtls:
        """Carry *sctp* from now on: it starts no sooner and stops no later than this.

        :raises ValueError: there is one that has not ended (RFC 8841, 9.1: one association).
        """
        if self._sctp is not None and self._sctp.state != "closed":
            raise ValueError("this DTLS transport carries an SCTP association")
        self._sctp = sctp
        return self._dtls
