"""coturn's test client, ``turnutils_uclient``, in all of its modes against a running node and its TURN server.

Debian's is 4.6.1: it has no flood (``-Y``) and its SCTP (``-b``) wants a kernel with it. DTLS (``-S`` without ``-t``)
is not served, and ``-J`` has nothing to do where the server does not speak of OAuth. Of passive TCP relays (``-P``) it
gets back no more than half from coturn's own server.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.interop.program import PATIENCE, Finished, run
from tests.interop.relay_server import (
    HOST,
    NAMESPACE,
    RELAY_IP,
    RELAY_PORTS,
    SECRET,
    EchoPeer,
    RelayServer,
    has_ipv6,
)
from tests.node import NodeProcess
from tests.ports import free_port

MESSAGES = 40
CROWD = 100
#: How a client is told to do what none should, and seconds that it gets for it.
MISCHIEF = (
    ("-c", "-R", "-m", "5"),
    ("-c", "-N"),
    ("-c", "-N", "-R", "-s"),
    ("-c", "-B", "-m", "10"),
    ("-c", "-O", "-m", "20"),
    ("-O", "-m", "20"),
)
MISCHIEF_TIME = 9.0
_COUNTS = re.compile(r"tot_send_msgs=(\d+), tot_recv_msgs=(\d+)")
#: How the client is told each transport.
TRANSPORTS: Mapping[str, tuple[str, ...]] = {"udp": (), "tcp": ("-t",), "tls": ("-t", "-S")}


@frozen
class Way:
    """One way to run the client: its options, and for how many times MESSAGES packets that makes."""

    options: tuple[str, ...]
    times: int = 1
    transports: tuple[str, ...] = ("udp", "tcp", "tls")


#: What has to work.
WAYS: Mapping[str, Way] = {
    "by channels": Way(("-c",)),
    "by Send": Way(("-c", "-s")),
    # Without -c there is a second relay for RTCP, on the port that EVEN-PORT reserved.
    "with a second relay": Way((), 2),
    "with padded channels": Way(("-c", "-D")),
    "with DONT-FRAGMENT": Way(("-c", "-g"), transports=("udp",)),
    "with more requests than needed": Way(("-G",), 2),
    "with more requests and by Send": Way(("-c", "-G", "-s")),
    "with ORIGIN and a bandwidth": Way(("-c", "-o", "https://app.example", "-a", "1000000")),
    "without other permissions than a channel's": Way(("-c", "-I")),
    # It closes its connection and comes with the ticket on another one; over TLS it then fails with any server.
    "with mobility": Way(("-c", "-M"), transports=("udp", "tcp")),
    # There are two clients, who meet relay to relay.
    "to another client": Way(("-c", "-y"), 2),
    "to another client by Send": Way(("-c", "-y", "-s"), 2),
    # RFC 6062: four clients, each of which has a connection with each other one.
    "by TCP relays": Way(("-T", "-m", "4"), 4, ("tcp", "tls")),
}


def counts(finished: Finished) -> tuple[int, int]:
    """How many messages the client sent, and how many it got back."""
    found = _COUNTS.findall(finished.output)
    return (int(found[-1][0]), int(found[-1][1])) if found else (0, 0)


class UclientTestCase(TestCase):
    timeout = 300
    if shutil.which("turnutils_uclient") is None:
        skip = "coturn is not installed"

    def echo(self) -> str:
        """Start coturn's echoing peer; its port."""
        port = str(free_port())
        command = ["turnutils_peer", "-p", port, "-L", HOST, *(("-L", "::1") if has_ipv6() else ())]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)
        return port

    def lossless(self, outcomes: Mapping[str, Finished], expected: Mapping[str, int]) -> None:
        """Each client sent, and got back, as many messages as expected, and ended well."""
        wrong = {
            name: f"{name}: {finished.status}, {finished.output[-1500:]}"
            for name, finished in outcomes.items()
            if finished.status != 0
            or counts(finished) != (expected[name], expected[name])
            or "Total lost packets 0 (0.000000%)" not in finished.output
            or "read_mobility_ticket: ERROR" in finished.output  # it would stay where it is
        }
        self.assertEqual([*wrong], [], "\n".join(wrong.values()))


async def together(commands: Mapping[str, list[str]], seconds: float = PATIENCE) -> dict[str, Finished]:
    """Run them all at once."""

    def again(finished: Finished, command: list[str]) -> Finished | Deferred[Finished]:
        # The client draws the numbers of its channels, and one in 16,384 is one that it has for another peer.
        return run(command, seconds) if "channel bind: error 400" in finished.output else finished

    outcomes: list[Finished] = await gatherResults(
        [run(command, seconds).addCallback(again, command) for command in commands.values()]  # type: ignore[misc]
    )
    return dict(zip(commands, outcomes, strict=True))


class NodeTests(UclientTestCase):
    """With a node as everybody runs it, and credentials that its REST gave out."""

    async def node(self, *settings: str) -> NodeProcess:
        """A node with these lines more in its ``[turn]``."""
        relays = (f'relay_ip = "{RELAY_IP}"', f"relay_ports = {list(RELAY_PORTS)}")
        lines = ("[turn]", 'allowed_peers = ["127.0.0.0/8"]', *relays, *settings, "")
        directory = Path(tempfile.mkdtemp(prefix="orama-uclient-"))  # the path of a socket may not be long
        self.addCleanup(shutil.rmtree, directory)
        node = NodeProcess(directory, config="\n".join(lines))
        await deferToThread(node.start)
        self.addCleanup(deferToThread, node.stop)
        return node

    async def check(self, node: NodeProcess, ways: Mapping[str, Way]) -> None:
        """All of these at once, over each transport."""
        issued = await deferToThread(node.credentials)
        common = ["turnutils_uclient", "-u", issued["username"], "-w", issued["password"]]
        common += ["-e", HOST, "-r", self.echo(), "-n", str(MESSAGES), "-z", "5", "-l", "500"]
        commands, expected = {}, {}
        for uri in issued["uris"]:
            scheme, _, rest = uri.partition(":")
            address, _, query = rest.partition("?")
            transport = "tls" if scheme == "turns" else query.partition("=")[2]
            to = ["-p", address.rpartition(":")[2], *TRANSPORTS[transport]]
            for name, way in ways.items():
                if transport in way.transports:
                    commands[f"{name} over {transport}"] = [*common, *to, *way.options, HOST]
                    expected[f"{name} over {transport}"] = way.times * MESSAGES
        self.lossless(await together(commands), expected)
        self.assertEqual(node.errors, "")

    async def test_every_way(self) -> None:
        """Over UDP, TCP and TLS nothing is lost, whatever the client asks for, and the node does not complain."""
        await self.check(await self.node("tcp_relays = true"), WAYS)

    async def test_several_processes(self) -> None:
        """With TURN in two processes the same: what one of them gave out, a nonce, a reserved port, a ticket or the
        number of a connection, is good with the other, and clients meet across them."""
        await self.check(await self.node("tcp_relays = true", "workers = 2"), WAYS)


class ServerTests(UclientTestCase):
    """With the TURN server in this process; what it logs as a failure fails the test."""

    def setUp(self) -> None:
        self.server = RelayServer(Path(self.mktemp()), relay_ip6="::1" if has_ipv6() else "").start()
        self.addCleanup(self.server.stop)
        self.peer_port = self.echo()

    def command(
        self, transport: str, *options: str, messages: int = MESSAGES, peer: str = HOST, host: str = HOST
    ) -> list[str]:
        """The client's, for the server at *host*."""
        how = ("-W", SECRET, "-u", NAMESPACE, "-e", peer, "-r", self.peer_port, "-n", str(messages), "-l", "200")
        to = ("-p", str(self.server.port(transport)), *TRANSPORTS[transport])
        return ["turnutils_uclient", *how, *to, *options, host]

    async def test_binding(self) -> None:
        """``turnutils_stunclient`` learns its own address, over IPv4 and IPv6."""
        for host, shown in ((HOST, "IPv4"), ("::1", "IPv6"))[: 1 + has_ipv6()]:
            told = await run(["turnutils_stunclient", "-p", str(self.server.port("udp")), host])
            self.assertEqual(told.status, 0, told.output)
            self.assertRegex(told.output, rf"{shown}\. UDP reflexive addr: {host}:\d+")

    async def test_families(self) -> None:
        """Clients and relays of IPv4 and of IPv6, in each combination and over UDP, TCP and TLS, lose nothing, and
        relays of both in one allocation neither."""
        if not has_ipv6():
            self.skipTest("no IPv6 here")
        commands = {}
        for transport in TRANSPORTS:
            # The relay is of the family of the peer.
            for host, peer in ((HOST, "::1"), ("::1", "::1"), ("::1", HOST)):
                name = f"{host} by {transport} to {peer}"
                commands[name] = self.command(transport, "-c", "-z", "5", peer=peer, host=host)
            # Refreshes each relay alone besides, as it happens.
            for peer in (HOST, "::1"):
                name = f"both families by {transport} to {peer}"
                commands[name] = self.command(transport, "-Z", "-z", "5", peer=peer)
        once = [*commands]
        commands["two relays of IPv6"] = self.command("udp", "-z", "5", peer="::1")
        commands["two clients by IPv6"] = self.command("tcp", "-c", "-y", "-x", "-z", "5")
        commands["two clients of both families"] = self.command("udp", "-Z", "-y", "-z", "5")
        expected = {name: MESSAGES if name in once else 2 * MESSAGES for name in commands}
        self.lossless(await together(commands), expected)

    async def test_crowd(self) -> None:
        """A hundred clients at once over each of UDP, TCP and TLS lose nothing, while others send broken messages (-R)
        and impossible requests (-N), vanish (-B), come only to leave (-O), and send without a permission (-I -s)."""
        # The program needs 0.1 s to start each client, so two of it have them together sooner.
        half = CROWD // 2
        crowd = {
            f"{number} over {transport}": self.command(transport, "-c", "-z", "20", "-m", str(half), messages=10)
            for transport in TRANSPORTS
            for number in ("one", "two")
        }
        unreached = EchoPeer().start()
        self.addCleanup(unreached.stop)
        uninvited = ("-c", "-I", "-s", "-r", str(unreached.address[1]))
        mischief = {
            f"{' '.join(options)} over {transport}": self.command(transport, "-z", "5", *options)
            for transport in TRANSPORTS
            for options in (*MISCHIEF, uninvited)
        }
        served, others = await gatherResults(
            [Deferred.fromCoroutine(together(crowd)), Deferred.fromCoroutine(together(mischief, MISCHIEF_TIME))]
        )
        self.lossless(served, dict.fromkeys(crowd, 10 * half))
        sent = {counts(others[f"{' '.join(uninvited)} over {transport}"]) for transport in TRANSPORTS}
        self.assertEqual(sent, {(MESSAGES, 0)})
        self.assertEqual(unreached.received, 0)
        figures = self.server.figures()
        self.assertEqual(figures["orama_turn_dropped_total", "no_permission"], len(TRANSPORTS) * MESSAGES)
        self.assertGreater(figures["orama_turn_dropped_total", "malformed"], 0)
