"""What an operator does to the TURN server of a whole node while it runs."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from attrs import evolve
from click.testing import CliRunner
from twisted.internet.threads import deferToThread

from orama.cli.main import main
from orama.hierarchy import Node
from orama.settings import NamespaceTurnSettings, TurnSettings
from orama.wire import stun
from orama.wire.stun import Method
from tests.test_hierarchy import NodeTestCase
from tests.turn.plain_client import Client

PEER = (stun.XOR_PEER_ADDRESS, ("127.0.0.1", 9))


class OneProcessTests(NodeTestCase):
    workers: ClassVar[int] = 1

    async def serving(self, **turn: Any) -> Node:
        return await self.running(turn=TurnSettings(workers=self.workers, **turn))

    def client(self, node: Node, user: str = "") -> Client:
        (tenant,) = node.tenants
        client = Client(node.turn.udp_port, tenant.secrets[0], user, "default")
        self.addCleanup(client.close)
        return client

    async def orama(self, *arguments: str) -> Any:
        """The answer of the command line in JSON."""
        where = ["--json", "--data-dir", str(self.directory / "data")]
        result = await deferToThread(CliRunner().invoke, main, [*arguments, *where])
        self.assertEqual((result.exit_code, result.stderr), (0, ""))
        return json.loads(result.stdout)

    async def settled(self, client: Client, code: int) -> None:
        """Every process that *client* may come to answers a new allocation with *code*."""
        for _ in range(500):
            if await deferToThread(client.attempt) == code:
                return
        self.fail(f"{code} does not come")

    async def test_reload(self) -> None:
        """Quotas and peers that are changed hold for who is there, without anybody being dropped."""
        node = await self.serving(allowed_peers=("127.0.0.0/8",))
        first, second = self.client(node, "ann"), self.client(node, "ann")
        self.assertEqual(await deferToThread(first.allocate), 0)
        self.assertEqual(await deferToThread(first.signed, Method.CREATE_PERMISSION, PEER), 0)
        special = {"default": NamespaceTurnSettings(denied_peers=("127.0.0.1/32",), allocations_per_user=1)}
        await node.reload(evolve(node.settings, turn=evolve(node.settings.turn, namespaces=special)))
        await self.settled(second, 486)
        self.assertEqual(await deferToThread(first.refresh), 0)
        for _ in range(500):
            if await deferToThread(first.signed, Method.CREATE_PERMISSION, PEER) == 403:
                break
        else:
            self.fail("the peer is not denied")
        await node.reload(evolve(node.settings, turn=evolve(node.settings.turn, namespaces={})))
        await self.settled(second, 0)
        self.assertEqual(await deferToThread(first.signed, Method.CREATE_PERMISSION, PEER), 0)

    async def test_own_services(self) -> None:
        """A relay that may reach this host reaches neither its HTTP nor its signalling there (403)."""
        node = await self.serving(allowed_peers=("127.0.0.0/8",))
        client = self.client(node)
        self.assertEqual(await deferToThread(client.allocate), 0)
        ports = [node.http[0].getHost().port, node.turn.udp_port, node.served.signaling_port("default"), 9]
        codes = []
        for number, port in enumerate(ports):
            wanted = (stun.CHANNEL_NUMBER, 0x4000 + number), (stun.XOR_PEER_ADDRESS, ("127.0.0.1", port))
            codes.append(await deferToThread(client.signed, Method.CHANNEL_BIND, *wanted))
        self.assertEqual(codes, [403, 403, 403, 0])

    async def test_sessions(self) -> None:
        """The command line shows who has an allocation, in whichever process, and ends it."""
        node = await self.serving()
        clients = [self.client(node, f"u{number}") for number in range(8)]
        for client in clients:
            self.assertEqual(await deferToThread(client.allocate), 0)
        found = (await self.orama("turn", "sessions", "--namespace", "default"))["sessions"]
        self.assertEqual({each["user"] for each in found}, {client.user for client in clients})
        relays = {each["user"]: each["relays"] for each in found}
        for client in clients:
            assert client.relay is not None
            self.assertEqual(relays[client.user], [f"{client.relay[0]}:{client.relay[1]}"])
        one = await self.orama("turn", "disconnect", "--namespace", "default", "--user", "u3")
        self.assertEqual(one, {"disconnected": 1})
        codes = [await deferToThread(client.refresh) for client in clients]
        self.assertEqual(codes, [437 if client.user == "u3" else 0 for client in clients])
        self.assertEqual(await self.orama("turn", "disconnect", "--namespace", "default"), {"disconnected": 7})
        self.assertEqual((await self.orama("turn", "sessions"))["sessions"], [])

    async def test_alternates(self) -> None:
        """While the node drains, clients are sent to the servers that the configuration names now."""
        node = await self.serving()
        client = self.client(node)
        node.turn.drain()
        await self.settled(client, 508)
        turn = evolve(node.settings.turn, alternate_servers=("192.0.2.7:3478",))
        await node.reload(evolve(node.settings, turn=turn))
        await self.settled(client, 300)
        node.turn.undrain()
        await self.settled(client, 0)


class WorkersTests(OneProcessTests):
    """The same where TURN is several processes."""

    workers = 2
