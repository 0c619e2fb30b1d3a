"""Where this node's TURN clients are sent while it drains: to the other nodes that relay for their namespace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random

from orama.cluster.desired import TurnPlace
from orama.cluster.nodes import NodeRecord
from orama.net.fabric import Address
from orama.settings import Settings
from orama.turn.alternates import Configured
from orama.wire.stun import Family


class ClusterAlternates:
    """:class:`~orama.turn.alternates.Alternates`: the cluster's, in any order, then those of the configuration.

    :param settings: those that hold now.
    :param places: where TURN of a namespace is to be.
    :param active: the nodes that are alive and take clients.
    :param random: spreads the clients.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        node_id: str,
        places: Callable[[str], Iterable[TurnPlace]],
        active: Callable[[], Iterable[NodeRecord]],
        random: Random,
    ) -> None:
        self._settings = settings
        self._node_id = node_id
        self._places = places
        self._active = active
        self._random = random

    def __call__(self, namespace: str, family: Family, transport: str) -> Sequence[Address]:
        settings = self._settings()
        found: list[Address] = []
        # Without a name of their own in common, their certificates are for nobody else's address.
        if transport != "tls" or settings.base_domain:
            active = {node.node_id for node in self._active()} - {self._node_id}
            found = [
                (place.public_ip, place.turns_port if transport == "tls" else place.turn_port)
                for place in self._places(namespace)
                if place.node_id in active and (":" in place.public_ip) == (family == Family.IPV6)
            ]
            self._random.shuffle(found)
        return [*found, *Configured(settings.turn.alternate_servers)(namespace, family, transport)]
