"""What goes along with the namespaces that a node serves, one function each for the reconciler to call in every pass.

Each compares what is with what should be and changes the difference; each may fail without harm to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import and_, select

from orama.cluster.certificates import TurnCertificates
from orama.cluster.desired import DesiredNamespace, WebRtcConfig
from orama.cluster.firewall import Firewall, rules_for
from orama.cluster.grants import is_enabled, names_of, publish, unpublish
from orama.cluster.nodes import NodeRegistry
from orama.cluster.placement import TURN
from orama.cluster.statefile import StateFile
from orama.cluster.turn_access import turn_host
from orama.settings import Settings
from orama.store import tables
from orama.store.database import Database

_records = tables.dns_records


class Names:
    """The DNS records of this node: they are there while it takes people, and only then.

    :param desired: what is wanted, as the pass has read it.
    """

    def __init__(
        self,
        database: Database,
        registry: NodeRegistry,
        base_domain: str,
        desired: Callable[[], Mapping[str, DesiredNamespace]],
        now: Callable[[], float],
        changed: Callable[[], object],
    ) -> None:
        self._database = database
        self._registry = registry
        self._base_domain = base_domain
        self._desired = desired
        self._now = now
        self._changed = changed

    async def attend(self, configs: Mapping[str, WebRtcConfig]) -> None:
        """Put back what is missing, and take away what this node should not have."""
        me = self._registry.get(self._registry.node_id)
        if not self._base_domain or me is None:
            return
        wanted = {}
        for namespace, each in self._desired().items():
            if each.enabled and not me.draining:
                roles = {role.role for role in each.roles if role.node_id == me.node_id}
                for name in names_of(namespace, roles, me, self._base_domain):
                    wanted[name.fqdn, name.type, name.value] = name
        mine = select(_records.c.fqdn, _records.c.type, _records.c.value).where(_records.c.node_id == me.node_id)
        rows = await self._database.read(lambda connection: connection.execute(mine).all())
        there = {(row.fqdn, row.type, row.value) for row in rows}
        statements = [
            publish(wanted[key], is_enabled(wanted[key].namespace), self._now()) for key in wanted.keys() - there
        ]
        for fqdn, kind, value in there - wanted.keys():
            row = and_(_records.c.fqdn == fqdn, _records.c.type == kind, _records.c.value == value)
            statements.append(unpublish(row, _records.c.node_id == me.node_id))
        if statements:
            await self._database.write(*statements)
            self._changed()


class Surroundings:
    """Firewall, certificates and state file of one node."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        firewall: Firewall,
        certificates: TurnCertificates,
        state: StateFile,
    ) -> None:
        self._settings = settings
        self._firewall = firewall
        self._certificates = certificates
        self._state = state

    async def firewall(self, configs: Mapping[str, WebRtcConfig]) -> None:
        await self._firewall.ensure(rules_for(configs.values(), self._settings()))

    async def certificates(self, configs: Mapping[str, WebRtcConfig]) -> None:
        hosts = {
            turn_host(self._settings(), namespace)
            for namespace, config in configs.items()
            if TURN in config.blocks.roles
        }
        await self._certificates.ensure(hosts)

    async def save(self, configs: Mapping[str, WebRtcConfig]) -> None:
        self._state.save(tuple(configs.values()), self._settings())
