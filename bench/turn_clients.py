"""Clients of a TURN server, as cheap as a load wants them: an allocation with one channel, over UDP, TCP or TLS.

What is said (RFC 8656: Allocate twice, ChannelBind, Refresh with lifetime 0) is a :class:`Session` without a
socket; :func:`converse` has many of them over UDP talk at once, so that the server and not a round trip is waited for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, TypeAlias

from orama.wire import stun
from orama.wire.channeldata import frame_length
from orama.wire.stun import Attribute, Class, Message, Method

Address: TypeAlias = tuple[str, int]

CHANNEL = 0x4000
NAMESPACE = "bench"
#: Clients of UDP have addresses below this, a thousand of them are in many networks; peers are at another one.
CLIENT_NETWORK = "127.78"
PEER_HOST = "127.79.0.1"
#: What sockets of the load are given, so that a reader that waits for its CPU loses nothing.
SOCKET_BUFFER = 32 << 20
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
#: UDP clients that talk at a time, the seconds after which a question is repeated, and how often it is.
WINDOW = 64
PATIENCE = 0.5
REPEATS = 20
_UDP = 17


class Stage(Enum):
    """How far a session is."""

    NEW = "new"
    CHALLENGED = "challenged"
    ALLOCATED = "allocated"
    BOUND = "bound"
    #: Somebody else on this machine holds the relay's port: another one is wanted.
    UNLUCKY = "unlucky"
    GONE = "gone"


class Session:
    """The conversation of one client.

    :param secret: shared with the server (``use-auth-secret``).
    :param peer: whom the channel is for.
    """

    def __init__(self, secret: str, peer: Address) -> None:
        self.stage = Stage.NEW
        #: Known once allocated.
        self.relay: Address = ("", 0)
        self._peer = peer
        self._username = f"{int(time.time()) + 3600}:{NAMESPACE}"
        digest = hmac.digest(secret.encode(), self._username.encode(), hashlib.sha1)
        self._password = base64.b64encode(digest).decode()
        self._key: bytes | None = None
        self._proof: list[tuple[Attribute[Any], Any]] = []
        self._transaction = b""

    def ask(self, release: bool = False) -> bytes:
        """The next request, which :meth:`hear` takes the answer to; asking again repeats it.

        :param release: end the allocation instead of going on.
        """
        attributes: list[tuple[Attribute[Any], Any]]
        if release or self.stage is Stage.UNLUCKY:
            method, attributes = Method.REFRESH, [(stun.LIFETIME, 0)]
        elif self.stage is Stage.ALLOCATED:
            method = Method.CHANNEL_BIND
            attributes = [(stun.CHANNEL_NUMBER, CHANNEL), (stun.XOR_PEER_ADDRESS, self._peer)]
        else:
            method, attributes = Method.ALLOCATE, [(stun.REQUESTED_TRANSPORT, _UDP)]
        self._transaction = self._transaction or os.urandom(12)
        return stun.build(method, Class.REQUEST, self._transaction, attributes + self._proof, key=self._key)

    def hear(self, data: bytes) -> bool:
        """Take what came; whether it was the answer.

        :raises RuntimeError: the server refuses.
        """
        if not stun.is_stun(data) or data[8:20] != self._transaction:
            return False
        answer = stun.parse(data)
        self._transaction = b""
        if answer.cls == Class.ERROR:
            self._refused(answer)
        elif answer.method == Method.ALLOCATE:
            self.relay = answer.get(stun.XOR_RELAYED_ADDRESS) or self.relay
            self.stage = Stage.ALLOCATED
        elif answer.method == Method.CHANNEL_BIND:
            self.stage = Stage.BOUND
        else:
            self.stage = Stage.CHALLENGED if self.stage is Stage.UNLUCKY else Stage.GONE
        return True

    def _refused(self, answer: Message) -> None:
        code, reason = answer.get(stun.ERROR_CODE) or (0, "")
        if code == 437 and answer.method == Method.REFRESH:
            self.stage = Stage.GONE
            return
        if code == 508 and answer.method == Method.CHANNEL_BIND:
            self.stage = Stage.UNLUCKY
            return
        if code not in (401, 438) or (code == 401 and self.stage is not Stage.NEW):
            raise RuntimeError(f"{Method(answer.method).name} was refused: {code} {reason}")
        if self.stage is Stage.NEW:
            self.stage = Stage.CHALLENGED
        realm = answer.get(stun.REALM) or ""
        self._key = stun.long_term_key(self._username, realm, self._password)
        self._proof = [(stun.USERNAME, self._username), (stun.REALM, realm), (stun.NONCE, answer.get(stun.NONCE))]


def udp_socket(host: str) -> socket.socket:
    """A bound one with large buffers, where the kernel gives them."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option, forced in ((socket.SO_RCVBUF, SO_RCVBUFFORCE), (socket.SO_SNDBUF, SO_SNDBUFFORCE)):
        try:
            made.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER)
        except PermissionError:
            made.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
    made.bind((host, 0))
    return made


class UdpClient:
    """A session and its socket.

    :param number: of this client among its like; its address follows from it.
    """

    def __init__(self, server: Address, secret: str, peer: Address, number: int) -> None:
        self.session = Session(secret, peer)
        # Neighbours in number are in different /24: what a server counts by network shall not be what is measured.
        self.socket = udp_socket(f"{CLIENT_NETWORK}.{number & 255}.{(number >> 8) + 1}")
        self.socket.connect(server)

    def close(self) -> None:
        self.socket.close()


class StreamClient:
    """A session over TCP, or TLS with a context; ready when made.

    :param tls: None for TCP.
    """

    def __init__(self, server: Address, secret: str, peer: Address, tls: ssl.SSLContext | None) -> None:
        self.session = Session(secret, peer)
        connected = socket.create_connection(server, 5)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected if tls is None else tls.wrap_socket(connected)
        while self.session.stage is not Stage.BOUND:
            self.socket.sendall(self.session.ask())
            while not self.session.hear(self._message()):
                pass

    @property
    def cipher(self) -> str:
        """Protocol and suite, empty without TLS."""
        if not isinstance(self.socket, ssl.SSLSocket):
            return ""
        return " ".join(str(each) for each in (self.socket.cipher() or ())[1::-1])

    def close(self) -> None:
        self.socket.close()

    def _message(self) -> bytes:
        data = self.socket.recv(20)
        while len(data) < 20 or len(data) < frame_length(data, 0):
            more = self.socket.recv((frame_length(data, 0) if len(data) >= 20 else 20) - len(data))
            if not more:
                raise ConnectionError("the server hung up")
            data += more
        return data


def tls_context() -> ssl.SSLContext:
    """Takes any certificate: it is not what is measured. Version and suite are the ones that both servers have."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # Debian's coturn 4.6.1 gives no more
    context.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def converse(
    clients: Iterable[UdpClient], until: Callable[[Session], bool], *, release: bool = False, window: int = WINDOW
) -> None:
    """Have *clients* talk, *window* of them at a time, each until its session is where it shall be.

    :raises RuntimeError: a server refuses, or does not answer.
    """
    waiting = iter(clients)
    poll = select.epoll()
    talking: dict[int, tuple[UdpClient, float, int]] = {}

    def say(client: UdpClient, repeat: int) -> None:
        client.socket.send(client.session.ask(release))
        talking[client.socket.fileno()] = client, time.monotonic(), repeat

    try:
        while True:
            while len(talking) < window and (fresh := next(waiting, None)) is not None:
                if not until(fresh.session):
                    poll.register(fresh.socket.fileno(), select.EPOLLIN)
                    say(fresh, 0)
            if not talking:
                return
            events = poll.poll(PATIENCE)
            for descriptor, _ in events:
                client = talking[descriptor][0]
                if not client.session.hear(client.socket.recv(65536)):
                    continue
                if until(client.session):
                    poll.unregister(descriptor)
                    del talking[descriptor]
                else:
                    say(client, 0)
            if not events:
                _repeat(talking, say)
    finally:
        poll.close()


def _repeat(talking: dict[int, tuple[UdpClient, float, int]], say: Callable[[UdpClient, int], None]) -> None:
    now = time.monotonic()
    for client, asked, repeat in list(talking.values()):
        if now - asked >= PATIENCE:
            if repeat >= REPEATS:
                raise RuntimeError(f"no answer to {client.socket.getsockname()} ({client.session.stage.value})")
            say(client, repeat + 1)


class Crowd:
    """The clients of one server, and the peer that they all have a channel to.

    :param address: of the server, for the transport.
    :param tls: a context for TLS.
    """

    def __init__(
        self, address: Address, secret: str, transport: str = "udp", tls: ssl.SSLContext | None = None
    ) -> None:
        self.transport = transport
        self.peer = udp_socket(PEER_HOST)
        self.clients: list[UdpClient | StreamClient] = []
        self._address, self._secret, self._tls = address, secret, tls

    def grow(self, count: int) -> None:
        """Have *count* of them, each with its channel."""
        peer = self.peer.getsockname()
        if self.transport != "udp":
            while len(self.clients) < count:
                self.clients.append(StreamClient(self._address, self._secret, peer, self._tls))
            return
        fresh = [UdpClient(self._address, self._secret, peer, number) for number in range(len(self.clients), count)]
        self.clients += fresh
        converse(fresh, lambda session: session.stage is Stage.BOUND)

    def release(self) -> None:
        """End every allocation: over UDP by asking, else with the connection."""
        udp = [client for client in self.clients if isinstance(client, UdpClient)]
        converse(udp, lambda session: session.stage is Stage.GONE, release=True)
        for client in self.clients:
            client.close()
        self.clients.clear()

    def close(self) -> None:
        """Give the sockets back."""
        self.release()
        self.peer.close()

    @property
    def relays(self) -> list[Address]:
        return [client.session.relay for client in self.clients]


def frame(payload: int, padded: bool) -> bytes:
    """A ChannelData message with so many zero bytes; *padded* for a stream."""
    return struct.pack("!HH", CHANNEL, payload) + bytes(payload + (-payload % 4 if padded else 0))
