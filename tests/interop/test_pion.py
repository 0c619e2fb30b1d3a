"""Pion's TURN client, the one of most programs written in Go, against our server.

``pion/main.go`` drives it and prints what happened; ``etc/lab/build`` compiles it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from tests.interop.program import run
from tests.interop.relay_server import HOST, RELAY_IP, EchoPeer, EchoStream, RelayServer
from tests.rqlite import find_program

MESSAGES = 40


class PionTests(TestCase):
    timeout = 240

    def setUp(self) -> None:
        self.program = find_program("pion-turn")

    def server(self, **settings: Any) -> RelayServer:
        server = RelayServer(Path(self.mktemp()), **settings).start()
        self.addCleanup(server.stop)
        return server

    def peer(self) -> EchoPeer:
        peer = EchoPeer().start()
        self.addCleanup(peer.stop)
        return peer

    async def pion(
        self,
        server: RelayServer,
        transport: str,
        peer: tuple[str, int],
        *more: str,
        told: Callable[[dict[str, Any]], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Run it; its events, without what Pion logged below a warning.

        :param told: gets each of them when it happens.
        """
        issued = server.credentials()
        command = [self.program, "-server", f"{HOST}:{server.port(transport)}", "-transport", transport]
        command += ["-user", issued.username, "-password", issued.password, "-peer", f"{peer[0]}:{peer[1]}", *more]
        finished = await run(command, line=None if told is None else lambda line: told(json.loads(line)))
        events = [json.loads(line) for line in finished.output.splitlines()]
        self.assertEqual(finished.status, 0, finished.output)
        return [each for each in events if each["event"] != "log" or each["level"] in ("warning", "error")]

    async def relays(self, transport: str) -> None:
        server, peer = self.server(), self.peer()
        events = await self.pion(server, transport, peer.address, "-messages", str(MESSAGES))
        names = [each["event"] for each in events]
        expected = ["bound", "allocated", "permitted", "channel", "echoed", "indicated", "released"]
        self.assertEqual(names, expected, events)
        self.assertEqual(events[0]["mapped"].rpartition(":")[0], HOST)
        self.assertEqual(events[1]["relay"].rpartition(":")[0], RELAY_IP)
        await server.when_ended(1)
        self.assertEqual(server.ended, ["released"])
        figures = server.figures()
        for direction in ("up", "down"):
            self.assertEqual(figures["orama_turn_packets_total", "myapp", direction], MESSAGES + 1)

    async def test_udp(self) -> None:
        """Over UDP: Binding, Allocate, a permission, a channel, packets both ways by both means, and release."""
        await self.relays("udp")

    async def test_tcp(self) -> None:
        """Over TCP: the same, with every length of padding."""
        await self.relays("tcp")

    async def test_tls(self) -> None:
        """Over TLS: the same."""
        await self.relays("tls")

    async def test_refresh(self) -> None:
        """It refreshes at half of the lifetime, and packets go on. Nonces that have aged meanwhile cost one 438."""
        server, peer = self.server(max_age=6, nonce_lifetime=1), self.peer()
        ways = ("udp", "tcp")
        runs = [Deferred.fromCoroutine(self.pion(server, way, peer.address, "-refresh")) for way in ways]
        for events in await gatherResults(runs):
            self.assertEqual([each["event"] for each in events][-2:], ["refreshed", "released"], events)
        self.assertGreaterEqual(server.figures()["orama_turn_refused_total", "438"], len(ways))
        await server.when_ended(len(ways))
        self.assertEqual(server.ended, ["released"] * len(ways))

    async def test_streams(self) -> None:
        """A TCP allocation (RFC 6062): a connection to a peer, and one from a peer, carry bytes both ways."""
        server = self.server(tcp_relays=True)
        listening: Any = reactor.listenTCP(0, Factory.forProtocol(EchoStream), interface=HOST)  # type: ignore[attr-defined,arg-type]
        self.addCleanup(listening.stopListening)

        def call(event: dict[str, Any]) -> None:
            """The peer that connects to the relay."""
            if event["event"] == "allocated":
                host, _, port = event["relay"].rpartition(":")
                connectProtocol(TCP4ClientEndpoint(reactor, host, int(port)), EchoStream())

        events = await self.pion(server, "tcp", (HOST, listening.getHost().port), "-what", "streams", told=call)
        names = [each["event"] for each in events]
        self.assertEqual(names, ["dialled", "allocated", "accepted", "echoed", "released"], events)
        await server.when_ended(1)
        self.assertEqual(server.ended, ["released"])
