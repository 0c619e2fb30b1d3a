"""aioice's TURN client, the one of programs written with aiortc, driven step by step against our server."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

from aioice import stun
from aioice.turn import (
    UDP_TRANSPORT,
    TurnClientProtocol,
    TurnClientTcpProtocol,
    TurnClientUdpProtocol,
)
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from orama.net.fabric import Address
from tests.interop.aiortc_client import deferred
from tests.interop.relay_server import HOST, RELAY_IP, EchoPeer, RelayServer

CHANNEL = 0x4000
SECONDS = 10.0


class Receiver(asyncio.DatagramProtocol):
    """Keeps what comes through the relay for who asks for it."""

    def __init__(self) -> None:
        self._came: asyncio.Queue[tuple[bytes, Address]] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._came.put_nowait((data, addr))

    async def next(self) -> tuple[bytes, Address]:
        return await asyncio.wait_for(self._came.get(), SECONDS)


def tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def request(method: stun.Method, **attributes: Any) -> stun.Message:
    """A request; names of attributes are written with underscores."""
    made = stun.Message(message_method=method, message_class=stun.Class.REQUEST)
    for name, value in attributes.items():
        made.attributes[name.replace("_", "-")] = value
    return made


class AioiceTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.peer = EchoPeer().start()
        self.addCleanup(self.peer.stop)

    def serve(self, **settings: Any) -> RelayServer:
        server = RelayServer(Path(self.mktemp()), **settings).start()
        self.addCleanup(server.stop)
        return server

    async def client(self, server: RelayServer, transport: str) -> TurnClientProtocol:
        """One that is connected to the server, without an allocation."""
        address, issued = (HOST, server.port(transport)), server.credentials()
        protocol = TurnClientUdpProtocol if transport == "udp" else TurnClientTcpProtocol

        def make() -> TurnClientProtocol:
            return protocol(address, issued.username, issued.password, lifetime=900, channel_refresh_time=300)

        made: TurnClientProtocol
        loop = asyncio.get_running_loop()
        if transport == "udp":
            _, made = await loop.create_datagram_endpoint(make, remote_addr=address)  # type: ignore[type-var,assignment]
        else:
            context = tls() if transport == "tls" else None
            _, made = await loop.create_connection(make, *address, ssl=context)  # type: ignore[type-var,assignment]
        self.addCleanup(made.transport.close)
        return made

    async def life(self, transport: str) -> None:
        server = self.serve()
        client = await self.client(server, transport)
        client.receiver = receiver = Receiver()
        relay = await client.connect()
        self.assertEqual(relay[0], RELAY_IP)
        self.assertEqual(client.mapped_address, client.transport.get_extra_info("sockname"))
        self.assertEqual(server.service.allocations(), 1)

        await client.request_with_retry(request(stun.Method.CREATE_PERMISSION, XOR_PEER_ADDRESS=self.peer.address))
        for length in (0, 1, 2, 3, 4, 1200):
            payload = bytes([length % 256]) * length
            await client.send_data(payload, self.peer.address)
            self.assertEqual(await receiver.next(), (payload, self.peer.address))
        self.assertEqual(client.peer_to_channel, {self.peer.address: CHANNEL})
        await client.send_data(b"from elsewhere", self.peer.address)
        self.assertEqual(await receiver.next(), (b"from elsewhere", self.peer.elsewhere))

        answer, _ = await client.request_with_retry(request(stun.Method.REFRESH, LIFETIME=1200))
        self.assertEqual(answer.attributes["LIFETIME"], 1200)
        await client.channel_bind(CHANNEL, self.peer.address)
        await client.send_data(b"after all that", self.peer.address)
        self.assertEqual(await receiver.next(), (b"after all that", self.peer.address))

        await client.delete()
        await server.when_ended(1)
        self.assertEqual(server.ended, ["released"])
        self.assertEqual(server.service.allocations(), 0)

    def test_udp(self) -> Deferred[None]:
        """Over UDP: Allocate, a permission, a channel, data both ways by Data and ChannelData, refreshes, release."""
        return deferred(self.life("udp"))

    def test_tcp(self) -> Deferred[None]:
        """Over TCP: the same."""
        return deferred(self.life("tcp"))

    def test_tls(self) -> Deferred[None]:
        """Over TLS: the same."""
        return deferred(self.life("tls"))

    async def refused(self, client: TurnClientProtocol, asked: stun.Message) -> int:
        """The code of the error that *asked* is answered with."""
        with self.assertRaises(stun.TransactionFailed) as caught:
            await client.request_with_retry(asked)
        return int(caught.exception.response.attributes["ERROR-CODE"][0])

    def test_refusals(self) -> Deferred[None]:
        """Errors arrive as such: unknown credentials 401, no allocation 437, a second one 437, a transport that is
        none 442, a peer that is shut 403, a channel of RFC 8656's reserved range 400. The allocation outlives them."""

        async def check() -> None:
            server = self.serve()
            stranger = await self.client(server, "udp")
            stranger.password = "wrong"
            with self.assertRaises(stun.TransactionFailed) as caught:
                await stranger.connect()
            self.assertEqual(caught.exception.response.attributes["ERROR-CODE"][0], 401)

            client = await self.client(server, "udp")
            client.receiver = receiver = Receiver()
            # Only what was asked with credentials is answered with more than a challenge.
            self.assertEqual(await self.refused(client, request(stun.Method.REFRESH, LIFETIME=600)), 437)
            other = request(stun.Method.ALLOCATE, REQUESTED_TRANSPORT=0x2A000000)
            self.assertEqual(await self.refused(client, other), 442)
            await client.connect()
            again = request(stun.Method.ALLOCATE, REQUESTED_TRANSPORT=UDP_TRANSPORT)
            self.assertEqual(await self.refused(client, again), 437)
            shut = request(stun.Method.CREATE_PERMISSION, XOR_PEER_ADDRESS=("169.254.169.254", 80))
            self.assertEqual(await self.refused(client, shut), 403)
            reserved = request(stun.Method.CHANNEL_BIND, CHANNEL_NUMBER=0x8000, XOR_PEER_ADDRESS=self.peer.address)
            self.assertEqual(await self.refused(client, reserved), 400)
            await client.send_data(b"all the same", self.peer.address)
            self.assertEqual(await receiver.next(), (b"all the same", self.peer.address))
            await client.delete()

        return deferred(check())

    def test_aged_nonce(self) -> Deferred[None]:
        """A nonce that has aged is answered 438 with a new one, and the client goes on with that."""

        async def check() -> None:
            server = self.serve(nonce_lifetime=1)
            client = await self.client(server, "udp")
            client.receiver = receiver = Receiver()
            await client.connect()
            first = client.nonce
            while client.nonce == first:  # one request after the other, until the second is over
                await client.request_with_retry(request(stun.Method.REFRESH, LIFETIME=600))
            self.assertEqual(server.figures()["orama_turn_refused_total", "438"], 1)
            await client.send_data(b"after it", self.peer.address)
            self.assertEqual(await receiver.next(), (b"after it", self.peer.address))
            await client.delete()

        return deferred(check())

    def test_several_relays(self) -> Deferred[None]:
        """Two allocations of one user, one over UDP and one over TLS, meet relay to relay."""

        async def check() -> None:
            server = self.serve()
            here, there = await self.client(server, "udp"), await self.client(server, "tls")
            receivers: list[Receiver] = []
            for client in (here, there):
                client.receiver = receiver = Receiver()
                receivers.append(receiver)
                await client.connect()
            assert here.relayed_address is not None and there.relayed_address is not None
            # Nobody has let this one in, so it is lost; from then on the other way is open.
            await here.send_data(b"too early", there.relayed_address)
            await there.send_data(b"down", here.relayed_address)
            self.assertEqual(await receivers[0].next(), (b"down", there.relayed_address))
            await here.send_data(b"up", there.relayed_address)
            self.assertEqual(await receivers[1].next(), (b"up", here.relayed_address))
            await here.delete()
            await there.delete()

        return deferred(check())
