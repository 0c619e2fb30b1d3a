"""Lists of other TURN servers."""

from __future__ import annotations

import json
from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from orama.net.fabric import Address
from orama.settings import TurnSettings
from orama.turn.alternates import Configured, Listed, listed
from orama.wire import stun
from orama.wire.stun import Family
from tests.turn.world import World, code


def known(namespace: str, family: Family, transport: str) -> Sequence[Address]:
    """Two servers of "a", one of which speaks IPv6; over TLS there is none."""
    if namespace != "a" or transport == "tls":
        return []
    return [("2001:db8::1", 3478)] if family == Family.IPV6 else [("192.0.2.2", 3478), ("192.0.2.1", 3478)]


class ListedTests(SynchronousTestCase):
    def test_the_same(self) -> None:
        """What was listed and sent on says the same as the one that was asked."""
        told = Listed(json.loads(json.dumps(listed(known, ["a", "b"]))))
        for namespace in ("a", "b", "c"):
            for family in Family:
                for transport in ("udp", "tcp", "tls"):
                    asked = namespace, family, transport
                    self.assertEqual(sorted(told(*asked)), sorted(known(*asked)), asked)

    def test_in_turns(self) -> None:
        """Clients are sent to all of them first, one after the other."""
        told = Listed(listed(known, ["a"]))
        firsts = [told("a", Family.IPV4, "udp")[0][0] for _ in range(4)]
        self.assertEqual(sorted(firsts), ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2"])

    def test_configured(self) -> None:
        """Those of the configuration serve every namespace, over UDP and TCP, each family by itself."""
        configured = Configured(["192.0.2.7:3478", "[2001:db8::7]:3479"])
        for transport in ("udp", "tcp"):
            self.assertEqual(configured("x", Family.IPV4, transport), [("192.0.2.7", 3478)])
            self.assertEqual(configured("x", Family.IPV6, transport), [("2001:db8::7", 3479)])
        self.assertEqual(configured("x", Family.IPV4, "tls"), ())

    def test_changed_while_it_runs(self) -> None:
        """A server that drains sends clients to those of the configuration as it is now."""
        world = World()
        world.server.drain()
        client = world.client()
        self.assertEqual(code(client.allocate()), 508)
        world.server.configure(TurnSettings(alternate_servers=("192.0.2.7:3478",)))
        answer = client.allocate()
        self.assertEqual((code(answer), answer.get(stun.ALTERNATE_SERVER)), (300, ("192.0.2.7", 3478)))
