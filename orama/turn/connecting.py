"""Connect, ConnectionBind, ConnectionAttempt (RFC 6062, 5): the connections a TCP allocation makes, takes and joins."""

from __future__ import annotations

import random as _random
from collections import Counter
from collections.abc import Callable, Iterator

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from orama.net.fabric import Address
from orama.turn.allocation import Allocation
from orama.turn.connections import MAX_CONNECTIONS, Connection, Connections, PeerStream, Stream, TcpRelay
from orama.turn.peers import Peers
from orama.turn.relay import Relay
from orama.turn.request import Attributes, Refused, Request
from orama.turn.tenants import Tenants
from orama.wire import stun
from orama.wire.stun import Class, Method

_log = Logger()


class Connecting:
    """The two methods and the indication.

    :param random: for transaction ids.
    :param relay_to: gives the relay of an allocation that reaches an IP; raises Refused when none does, or may.
    :param drops: connections of peers that were not taken, by reason.
    """

    def __init__(
        self,
        connections: Connections,
        clock: IReactorTime,
        random: _random.Random,
        tenants: Tenants,
        peers: Peers,
        relay_to: Callable[[Allocation, str], Relay],
        drops: Counter[str],
    ) -> None:
        self._connections = connections
        self._clock = clock
        self._random = random
        self._tenants = tenants
        self._peers = peers
        self._relay_to = relay_to
        self._drops = drops
        tenants.watch(self._tenant_changed)

    def stop(self) -> None:
        self._tenants.unwatch(self._tenant_changed)

    def make_relay(self, address: Address, allocation: Allocation) -> TcpRelay:
        """The relay of a TCP allocation.

        :raises CannotListenError: the address is taken.
        """
        return TcpRelay(address, allocation, self._connections, self._arrived)

    def connect(self, request: Request) -> Deferred[Attributes]:
        """RFC 6062, 5.2."""
        allocation = request.own()
        if not isinstance(allocation.relay, TcpRelay):
            raise Refused(437)
        peer = request.message.get(stun.XOR_PEER_ADDRESS)
        if peer is None or not peer[1]:
            raise Refused(400)
        relay = self._relay_to(allocation, peer[0])
        assert isinstance(relay, TcpRelay)
        if any(connection.peer == peer for connection in relay):
            raise Refused(446)
        if peer == relay.address or not self._peers.may_reach(allocation.tenant, peer):
            raise Refused(403)
        if len(relay) >= MAX_CONNECTIONS:
            raise Refused(508)

        def connected(connection: Connection) -> Attributes:
            return [(stun.CONNECTION_ID, connection.id)]

        def failed(failure: Failure) -> Attributes:
            _log.debug("no connection to {peer}: {why}", peer=peer, why=failure.getErrorMessage())
            raise Refused(447)

        return relay.connect(peer, request.now).addCallbacks(connected, failed)

    def connection_bind(self, request: Request) -> Attributes:
        """RFC 6062, 5.4. A connection that has an allocation is no data connection."""
        id_ = request.message.get(stun.CONNECTION_ID)
        link = request.link
        if not isinstance(link, Stream) or id_ is None or request.allocation is not None:
            raise Refused(400)
        connection = self._connections.pending(id_)
        if connection is None:
            raise Refused(400)
        if not request.is_owner_of(connection.allocation):
            raise Refused(441)
        # The answer is sent before anything of the peer is: a pipe tells nothing in the call that resumes it.
        connection.bind(link)
        return []

    def named(self, id_: int) -> Allocation | None:
        """Whose the pending connection of that number is."""
        connection = self._connections.pending(id_)
        return None if connection is None else connection.allocation

    def _arrived(self, relay: TcpRelay, stream: PeerStream, peer: Address) -> None:
        """A peer has connected to a relayed address (RFC 6062, 5.3)."""
        allocation, now = relay.allocation, self._clock.seconds()
        if not allocation.has_permission(peer[0], now):
            self._drops["no_permission"] += 1
        elif not self._peers.may_reach(allocation.tenant, peer):
            self._drops["forbidden_peer"] += 1
        elif len(relay) >= MAX_CONNECTIONS:
            self._drops["too_many_connections"] += 1
        else:
            connection = relay.accept(stream, peer, now)
            attributes: Attributes = [(stun.XOR_PEER_ADDRESS, peer), (stun.CONNECTION_ID, connection.id)]
            transaction_id = self._random.getrandbits(96).to_bytes(12, "big")
            indication = stun.build(Method.CONNECTION_ATTEMPT, Class.INDICATION, transaction_id, attributes)
            allocation.link.send((indication,), allocation.client)
            return
        stream.abort()

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Name, labels and value of the figures of each namespace."""
        counts = Counter(connection.allocation.tenant.namespace for connection in self._connections)
        for namespace in sorted({*counts, *(tenant.namespace for tenant in self._tenants)}):
            yield "orama_turn_connections", {"namespace": namespace}, counts[namespace]

    def _tenant_changed(self, namespace: str) -> None:
        """End the connections to whom the rules have shut; the allocations have taken the rules over before."""
        for connection in self._connections:
            if not self._peers.may_reach(connection.allocation.tenant, connection.peer):
                connection.abort()
