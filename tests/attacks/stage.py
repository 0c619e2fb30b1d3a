"""The nodes that are attacked: each is started when it is first needed, and lives until the interpreter ends.

A node that an attack has thrown off its feet is seen after every test: it has to answer, and its log has to be without
a traceback.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
from functools import cache
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.attacks.lurkers import Lurkers, typical
from tests.attacks.probe import Probe
from tests.contract import turn
from tests.contract.commands import secret
from tests.contract.stage import end, started, toml
from tests.contract.turn import Address
from tests.node import NodeProcess

#: Where relays are: an address of their own for each node, so that no other test has a port of the blocks.
GUARDED, OPENED, NARROW, WIDE_OPEN, PARTED = (f"127.0.80.{number}" for number in range(1, 6))
#: Networks whose last bit is inside a byte; nobody is there.
WIDE, DEEP, HOLE = "2600:1230::/29", "2600:2000:0:7f00::/57", "2600:1234:8000::/35"
#: Where relays may not go for all that loopback is open, and where proxies are.
DENIED, PROXIES = "127.66.0.0/15", "127.70.0.0/16"
#: Where we look from after each test, so that nobody else's flood is counted for us.
SURVIVOR = "127.0.99.99"
#: Relay ports of a namespace on the opened node.
BLOCK = 16
#: What the narrow node allows.
ALLOCATIONS_OF_USER, ALLOCATIONS_OF_NAMESPACE = 2, 4
RATE, BURST = 5, 20
NONCE_LIFETIME = 2
NAUGHTY_REQUESTS = 40


@cache
def has_ipv6() -> bool:
    """Whether this machine has a loopback address of IPv6."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probing:
            probing.bind(("::1", 0))
    except OSError:
        return False
    return True


def _kept(*options: str, **tables: str) -> NodeProcess:
    made = started(*options, config=toml(**tables))
    atexit.register(end, made)
    return made


@cache
def guarded() -> NodeProcess:
    """Peers are as nobody has configured them; blocks have the size that they have by default."""
    return _kept("--internal-ip", GUARDED, turn=f'relay_block = 800\nproxy_protocol_from = ["{PROXIES}"]')


@cache
def parted() -> NodeProcess:
    """TURN is two processes on the same ports."""
    return _kept(turn=f'relay_ip = "{PARTED}"\nworkers = 2')


@cache
def lurkers() -> Lurkers:
    """Who waits in vain on :func:`guarded`, from when that one was up."""
    node = guarded()
    return Lurkers({transport: address(node, transport) for transport in ("tcp", "tls")}, typical())


@cache
def opened() -> NodeProcess:
    """Relays of UDP and TCP may reach loopback, but for a part; the block of a namespace is sixteen ports."""
    return _kept(
        turn=f'relay_ip = "{OPENED}"\nrelay_block = {BLOCK}\nallowed_peers = ["127.0.0.0/8"]\n'
        f'denied_peers = ["{DENIED}"]\ntcp_relays = true'
    )


@cache
def wide() -> NodeProcess:
    """Relays, of both families where there are both, may reach every address that is not special."""
    six = 'relay_ip6 = "::1"\n' if has_ipv6() else ""
    return _kept("--internal-ip", WIDE_OPEN, turn=six + 'allowed_peers = ["0.0.0.0/0", "::/0"]')


@cache
def numbered() -> NodeProcess:
    """Relays are on IPv6, and may reach networks that end inside a byte, but for a part of one."""
    return _kept(turn=f'relay_ip = "::1"\nallowed_peers = ["{WIDE}", "{DEEP}"]\ndenied_peers = ["{HOLE}"]')


@cache
def narrow() -> NodeProcess:
    """Every limit is low, relays of TCP may reach nobody, and the log is JSON."""
    return _kept(
        "--log-format",
        "json",
        limits=f"request_rate = 5\nrequest_burst = {NAUGHTY_REQUESTS}",
        turn=f'relay_ip = "{NARROW}"\nallocations_per_user = {ALLOCATIONS_OF_USER}\n'
        f"allocations_per_namespace = {ALLOCATIONS_OF_NAMESPACE}\nnonce_lifetime = {NONCE_LIFETIME}\n"
        f"tcp_relays = true\nunauthenticated_rate = {RATE}\nunauthenticated_burst = {BURST}",
    )


@cache
def address(node: NodeProcess, transport: str = "udp") -> Address:
    return "127.0.0.1", turn.port(node.credentials(), transport)


def probe(
    node: NodeProcess, username: str = "", transport: str = "udp", namespace: str = "default", **more: Any
) -> Probe:
    """Somebody with good credentials, made from the secret of *namespace*."""
    username = username or f"{int(time.time()) + 600}:{namespace}:{os.urandom(4).hex()}"
    password = turn.password(secret(node, namespace), username)
    return Probe(address(node, transport), username, password, transport, **more)


class AttackTestCase(SynchronousTestCase):
    """An attack on one of the nodes."""

    def setUp(self) -> None:
        self.node = self.attacked()
        self.addCleanup(self.check)

    def attacked(self) -> NodeProcess:
        lurkers()  # so that they have waited when they are looked at
        return guarded()

    def check(self) -> None:
        """The node answers, and nothing that came has surprised it."""
        survivor = Probe(address(self.node), source=SURVIVOR)
        self.addCleanup(survivor.socket.close)
        self.assertTrue(survivor.is_alive())
        self.assertEqual(self.node.errors, "")
        self.assertEqual([line for line in self.node.said() if "Traceback" in line or "Unhandled" in line], [])

    def client(self, transport: str = "udp", **more: Any) -> Probe:
        client = probe(self.node, transport=transport, **more)
        self.addCleanup(client.release)
        return client

    def allocated(self, *attributes: tuple[int, bytes], transport: str = "udp", **more: Any) -> Probe:
        """With an allocation; ``self.relayed`` is where."""
        client = self.client(transport, **more)
        answer = client.allocate(*attributes)
        self.assertEqual(answer.code, 0)
        self.relayed = answer.address(turn.XOR_RELAYED_ADDRESS)
        return client

    def bound(self, host: str) -> socket.socket:
        """A peer that is no part of the node."""
        peer = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(peer.close)
        peer.bind((host, 0))
        peer.settimeout(turn.PATIENCE)
        return peer

    def listening(self, host: str = "127.0.0.1") -> socket.socket:
        """A TCP server that is no part of the node."""
        peer = socket.create_server((host, 0))
        self.addCleanup(peer.close)
        peer.settimeout(turn.SILENCE)
        return peer

    def silent(self, client: Probe) -> None:
        """Nothing comes to *client* before the answer to what it asks now."""
        request = turn.build(turn.BINDING)
        client.send(request)
        while (raw := client.receive()) is not None:
            self.assertEqual(raw[8:20], request[8:20], raw)
            return
        self.fail("no answer")
