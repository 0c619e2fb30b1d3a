"""What RFC 8656 and RFC 8489 ask of the whole server, over its real sockets."""

from __future__ import annotations

import socket
import struct
import time
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from orama.net.fabric import Fabric
from orama.net.tls import ServerCertificates
from orama.settings import Settings, TurnSettings
from orama.turn.credentials import issue
from orama.turn.listeners import TurnService
from orama.turn.tenants import Tenant, Tenants
from orama.wire import stun
from orama.wire.stun import Class, Family, Message, Method, PasswordAlgorithm
from tests.net.test_burst import HAS_IPV6
from tests.turn.plain_client import Client

TENANT = Tenant("myapp", ("north",), (61000, 61999), allowed_peers=(ip_network("127.0.0.0/8"), ip_network("::1/128")))


def send(client: Client, peer: tuple[str, int], data: bytes) -> None:
    """A Send indication."""
    rows = [(stun.XOR_PEER_ADDRESS, peer), (stun.DATA, data)]
    client.socket.send(stun.build(Method.SEND, Class.INDICATION, bytes(12), rows))


class SocketTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        tenants = Tenants()
        tenants.put(TENANT)
        certificates = ServerCertificates(Path(self.mktemp()), ["127.0.0.1"], reactor)
        turn = TurnSettings(relay_ip="127.0.0.1", relay_ip6="::1" if HAS_IPV6 else "")
        settings = evolve(Settings(turn_port=0, turns_port=0), turn=turn)
        self.service = TurnService(reactor, settings, tenants, Fabric(reactor), certificates)
        self.service.startService()
        self.addCleanup(self.service.stopService)

    def client(self) -> Client:
        client = Client(self.service.udp_port)
        self.addCleanup(client.close)
        return client

    async def test_11_5_icmp(self) -> None:
        """Where nobody listens at the peer's port, the client hears so: a Data indication with ICMP 3, 3."""

        def talk() -> tuple[Message, tuple[str, int]]:
            client = self.client()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.bind(("127.0.0.1", 0))
                closed = ("127.0.0.1", peer.getsockname()[1])
            assert client.allocate() == 0
            assert client.signed(Method.CREATE_PERMISSION, (stun.XOR_PEER_ADDRESS, closed)) == 0
            send(client, closed, b"anybody?")
            return stun.parse(client.socket.recv(2048)), closed

        message, closed = await deferToThread(talk)
        self.assertEqual((message.method, message.cls), (Method.DATA, Class.INDICATION))
        self.assertEqual((message.get(stun.XOR_PEER_ADDRESS), message.get(stun.ICMP)), (closed, (3, 3, 0)))

    async def test_6_dual(self) -> None:
        """One allocation relays to an IPv4 and to an IPv6 peer, each from and to the address of its family."""
        if not HAS_IPV6:
            return

        def talk() -> None:
            client = self.client()
            rows = (stun.REQUESTED_TRANSPORT, 17), (stun.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6)
            assert client.signed(Method.ALLOCATE, *rows) == 0
            for relay, family, ip in zip(
                client.answer.all(stun.XOR_RELAYED_ADDRESS),
                (socket.AF_INET, socket.AF_INET6),
                ("127.0.0.1", "::1"),
                strict=True,
            ):
                with socket.socket(family, socket.SOCK_DGRAM) as peer:
                    peer.settimeout(10)
                    peer.bind((ip, 0))
                    address = (ip, peer.getsockname()[1])
                    assert client.signed(Method.CREATE_PERMISSION, (stun.XOR_PEER_ADDRESS, address)) == 0
                    send(client, address, b"up")
                    data, source = peer.recvfrom(100)
                    assert (data, source[:2]) == (b"up", relay)
                    for size in (0, 1, 1200):
                        peer.sendto(bytes(size), relay)
                        message = stun.parse(client.socket.recv(2048))
                        assert message.get(stun.XOR_PEER_ADDRESS) == address
                        assert message.get(stun.DATA) == bytes(size)

        await deferToThread(talk)

    async def test_9_2_4_sha256_over_tcp(self) -> None:
        """Over TCP a bare Allocate is offered SHA-256, and a client that takes it allocates and releases under it."""

        def talk() -> list[Message]:
            with socket.create_connection(("127.0.0.1", self.service.tcp_port), 10) as stream:

                def ask(method: int, *rows: Any, **build: Any) -> Message:
                    stream.sendall(stun.build(method, Class.REQUEST, bytes(12), rows, **build))
                    head = stream.recv(20, socket.MSG_WAITALL)
                    size: int = struct.unpack_from("!H", head, 2)[0]
                    return stun.parse(head + stream.recv(size, socket.MSG_WAITALL))

                challenge = ask(Method.ALLOCATE)
                made = issue("north", "myapp", 600, time.time())
                key = stun.long_term_key(made.username, "orama", made.password, PasswordAlgorithm.SHA256)
                who = [
                    (stun.USERNAME, made.username),
                    (stun.REALM, challenge.get(stun.REALM)),
                    (stun.NONCE, challenge.get(stun.NONCE)),
                    (stun.PASSWORD_ALGORITHMS, challenge.get(stun.PASSWORD_ALGORITHMS)),
                    (stun.PASSWORD_ALGORITHM, (PasswordAlgorithm.SHA256, b"")),
                ]
                answers = [
                    ask(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 17), *who, key=key, sha256=True),
                    ask(Method.REFRESH, (stun.LIFETIME, 0), *who, key=key, sha256=True),
                ]
                assert all(answer.verify(key) for answer in answers)
                return answers

        for answer in await deferToThread(talk):
            self.assertEqual(answer.cls, Class.SUCCESS)
            self.assertIn(stun.MESSAGE_INTEGRITY_SHA256, answer)
