"""What a namespace is served with."""

from __future__ import annotations

from ipaddress import ip_network

from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.desired import Blocks, WebRtcConfig
from orama.serving import tenant_of
from orama.settings import NamespaceTurnSettings, Settings, TurnSettings
from orama.turn.tenants import Shut

SHUT = Shut(("10.0.0.1",), ((6001, 6001),))


class TenantTests(SynchronousTestCase):
    def test_peers(self) -> None:
        """A namespace's peers are those of all and its own, allowed and denied each by themselves."""
        settings = Settings(
            turn=TurnSettings(
                allowed_peers=("198.51.100.0/24",),
                denied_peers=("::ffff:10.0.0.0/104",),
                namespaces={
                    "a": NamespaceTurnSettings(allowed_peers=("2001:db8::/32",), denied_peers=("10.0.0.1/32",))
                },
            )
        )
        networks = {
            name: (tenant.allowed_peers, tenant.denied_peers)
            for name in ("a", "b")
            for config in [WebRtcConfig(name, ("secret",), 600, True, Blocks(relay=(50000, 50799)))]
            for tenant in [tenant_of(config, settings, SHUT)]
        }
        everybody, nobody = ip_network("198.51.100.0/24"), ip_network("10.0.0.0/8")
        self.assertEqual(networks["a"][0], (everybody, ip_network("2001:db8::/32")))
        self.assertEqual(networks["a"][1], (nobody, ip_network("10.0.0.1/32")))
        self.assertEqual(networks["b"], ((everybody,), (nobody,)))
