"""Every allocation of the process, by five-tuple: made with a port and a share of the quota, ended with both returned.

What a request may have is decided in ``allocating``; here it is found, kept, counted and taken down again.
"""

from __future__ import annotations

import random as _random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeAlias

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.net.fabric import Address, AddressInUse, Fabric
from orama.settings import TurnSettings
from orama.turn.allocation import Allocation, Traffic
from orama.turn.peers import Peers
from orama.turn.ports import RESERVATION_TIME, RelayPorts
from orama.turn.quota import Owner, Quota, Share
from orama.turn.relay import Link, OpenSocket, Relay, UdpRelay
from orama.turn.sessions import Selection, Session, transport_of
from orama.turn.shared import Crew
from orama.turn.shared_ports import SharedBook
from orama.turn.shared_quota import SharedLedger
from orama.turn.tenants import Tenant, Tenants
from orama.wire.stun import Family

#: Makes the relay of an allocation at an address; raises CannotListenError or AddressInUse where none is to be had.
MakeRelay: TypeAlias = Callable[[Address, Allocation], Relay]

#: Of what an operator calls an allocation.
_ID_BITS = 48

_log = Logger()


class OverQuota(Exception):
    """The namespace or the user has enough already."""


class NoPort(Exception):
    """No relay port as it was asked for."""


class Allocations:
    """The registry.

    :param random: for relay ports and tokens; not to be guessed in production.
    :param relay_ips: where relays of each family are.
    :param open_socket: binds a relay address in the kernel.
    :param drops: packets lost, by reason.
    :param crew: where there are several workers on the same ports, what they count together.
    """

    def __init__(
        self,
        *,
        clock: IReactorTime,
        random: _random.Random,
        settings: TurnSettings,
        relay_ips: Mapping[Family, str],
        tenants: Tenants,
        peers: Peers,
        fabric: Fabric,
        open_socket: OpenSocket,
        drops: Counter[str],
        crew: Crew | None = None,
    ) -> None:
        self._clock = clock
        self._random = random
        self._relay_ips = relay_ips
        self._tenants = tenants
        self._peers = peers
        self._fabric = fabric
        self._open_socket = open_socket
        self._drops = drops
        self._quota = Quota.of(settings, None if crew is None else SharedLedger(crew.table))
        self._ports = {
            family: RelayPorts(random, None if crew is None else SharedBook(crew.table, row, crew.key))
            for row, family in enumerate(sorted(relay_ips))
        }
        #: The link stands for the transport and for our own address.
        self._live: dict[tuple[Link, Address], Allocation] = {}
        #: By the second five-tuple of those that have one.
        self._moving: dict[tuple[Link, Address], Allocation] = {}
        #: Is told of each that has ended.
        self.ended: Callable[[Allocation], None] = _nobody
        self._ended: dict[str, Traffic] = {}
        #: Relay ports and SFUs of each namespace, as they were last seen.
        self._places: dict[str, object] = {each.namespace: (each.relay_ports, each.sfu_media) for each in tenants}
        #: Ports that wait for who shows the token: for whom, and until when.
        self._kept: dict[bytes, tuple[Owner, float]] = {}
        self._kept_by: Counter[Owner] = Counter()
        tenants.watch(self._tenant_changed)

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Allocation]:
        """Those that there are now."""
        return iter(tuple(self._live.values()))

    def of_namespace(self, namespace: str) -> int:
        """How many *namespace* has."""
        return sum(allocation.tenant.namespace == namespace for allocation in self._live.values())

    def find(self, link: Link, client: Address, now: float) -> Allocation | None:
        """The allocation of that five-tuple, unless it has expired."""
        allocation = self._live.get((link, client)) or self._moving.get((link, client))
        if allocation is not None and allocation.expires <= now:
            self.end(allocation, "expired")
            return None
        return allocation

    @property
    def families(self) -> Collection[Family]:
        """Of which there can be relays."""
        return self._relay_ips.keys()

    def make(
        self,
        link: Link,
        client: Address,
        tenant: Tenant,
        user: str,
        now: float,
        *,
        families: Sequence[Family],
        even: bool = False,
        pair: bool = False,
        token: bytes | None = None,
        make_relay: MakeRelay | None = None,
    ) -> Allocation:
        """A new allocation, attached to the fabric, that has yet to be told when it expires.

        :param families: one relay of each, as far as there are ports: one is enough.
        :param even: on an even port; :param pair: and one whose successor is free.
        :param token: on the port that was reserved under it.
        :param make_relay: for relays other than of UDP.
        :raises OverQuota: nothing was made.
        :raises NoPort: nothing was made.
        """
        share = self._quota.take(tenant.namespace, user, now)
        if share is None:
            raise OverQuota
        if pair and not self._may_keep_port(share):
            self._quota.release(share)
            raise OverQuota
        allocation = Allocation(
            id=f"{self._random.getrandbits(_ID_BITS):0{_ID_BITS // 4}x}",
            clock=self._clock,
            random=self._random,
            link=link,
            client=client,
            tenant=tenant,
            user=user,
            share=share,
            peers=self._peers,
            drops=self._drops,
            created=now,
        )
        if token is not None:
            found = [self._reserved_relay(allocation, token, now)]
        else:
            make_relay = make_relay or self._udp_relay
            found = [self._any_relay(allocation, family, even, pair, make_relay) for family in families]
        allocation.relays = tuple(relay for relay in found if relay is not None)
        if not allocation.relays:
            self._quota.release(share)
            raise NoPort
        self._live[link, client] = allocation
        _log.debug(
            "allocation of {namespace} user {user!r} begins on port {port}",
            namespace=tenant.namespace,
            user=user,
            port=allocation.relay.address[1],
        )
        return allocation

    def reserve(self, allocation: Allocation, now: float) -> bytes:
        """Keep the port above the allocation's; gives the token."""
        relay, owner = allocation.relay, allocation.share.keys[-1]
        token = self._ports[relay.family].reserve(allocation.tenant.namespace, relay.address[1] + 1, now)
        self._kept[token] = owner, now + RESERVATION_TIME
        self._kept_by[owner] += 1
        return token

    def _may_keep_port(self, share: Share) -> bool:
        """Whether a port may wait for its owner: as many at a time as he may have allocations.

        Without that limit one user could, by allocations that he gives back at once, keep all ports of his namespace.
        """
        owner = share.keys[-1]
        limit = self._quota.limits(owner[0]).allocations(owner)
        return not limit or self._kept_by[owner] < limit

    def _forget_kept(self, token: bytes) -> None:
        kept = self._kept.pop(token, None)
        if kept is not None:
            self._kept_by[kept[0]] -= 1
            if not self._kept_by[kept[0]]:
                del self._kept_by[kept[0]]

    def drop(self, allocation: Allocation, relay: Relay) -> None:
        """Take one of its two relays from an allocation, or end it with the last one."""
        if len(allocation.relays) == 1:
            self.end(allocation, "released")
            return
        allocation.drop(relay)
        self._release(relay)

    def expect(self, allocation: Allocation, link: Link, client: Address) -> None:
        """Give an allocation a second five-tuple, instead of one that it may have had (RFC 8016, 3.2.2)."""
        self.forget_second(allocation)
        allocation.second = link, client
        self._moving[link, client] = allocation

    def move(self, allocation: Allocation) -> None:
        """Leave the first five-tuple of an allocation for its second."""
        assert allocation.second is not None
        del self._live[allocation.link, allocation.client], self._moving[allocation.second]
        if allocation.client != allocation.second[1]:
            allocation.former = allocation.client
        allocation.link, allocation.client = allocation.second
        self._live[allocation.second] = allocation
        allocation.second = None

    def forget_second(self, allocation: Allocation) -> None:
        """Give up the second five-tuple of an allocation; nothing happens when it has none."""
        if allocation.second is not None:
            del self._moving[allocation.second]
            allocation.second = None

    def end(self, allocation: Allocation, reason: str) -> None:
        """Take an allocation down and say so in the log."""
        self.forget_second(allocation)
        del self._live[allocation.link, allocation.client]
        for relay in allocation.relays:
            relay.close()
            self._release(relay)
        self._quota.release(allocation.share)
        self._ended.setdefault(allocation.tenant.namespace, Traffic()).add(allocation.traffic)
        self.ended(allocation)
        session = Session.of(allocation, self._clock.seconds())
        _log.info(
            "allocation {id} of {namespace} user {user!r} from {client} over {transport} on {relays} ended ({reason}) "
            "after {seconds:.0f} s: {bytes_up} bytes in {packets_up} packets up, {bytes_down} in {packets_down} down",
            id=session.id,
            namespace=session.namespace,
            user=session.user,
            client=session.client,
            transport=session.transport,
            relays=", ".join(session.relays),
            reason=reason,
            seconds=session.age,
            bytes_up=session.bytes_up,
            packets_up=session.packets_up,
            bytes_down=session.bytes_down,
            packets_down=session.packets_down,
        )

    def disconnect(self, selection: Selection) -> int:
        """End those that an operator means, and the streams of their clients; gives how many there were."""
        meant = [allocation for allocation in self._live.values() if selection.has(allocation)]
        for allocation in meant:
            self.end(allocation, "disconnected by an operator")
            if transport_of(allocation.link) != "udp":
                allocation.link.close()  # type: ignore[attr-defined]
        return len(meant)

    def configure(self, settings: TurnSettings) -> None:
        """Take over the quotas; who holds more than they allow keeps it."""
        self._quota.configure(settings, self._clock.seconds())

    def expire(self, now: float) -> None:
        """End what is over; to be called about once a second."""
        for allocation in list(self._live.values()):
            if allocation.expires <= now:
                self.end(allocation, "expired")
            elif len(allocation.relays) > 1:
                for relay in [each for each in allocation.relays if each.expires <= now]:
                    self.drop(allocation, relay)
        for ports in self._ports.values():
            ports.expire(now)
        for token in [token for token, (_, expires) in self._kept.items() if expires <= now]:
            self._forget_kept(token)
        self._quota.forget_idle(now)

    def stop(self) -> None:
        """End them all."""
        self._tenants.unwatch(self._tenant_changed)
        for allocation in list(self._live.values()):
            self.end(allocation, "stopped")

    def traffic(self) -> Mapping[str, Traffic]:
        """What each namespace has relayed since the start."""
        totals: dict[str, Traffic] = {tenant.namespace: Traffic() for tenant in self._tenants}
        for namespace, ended in self._ended.items():
            totals.setdefault(namespace, Traffic()).add(ended)
        for allocation in self._live.values():
            totals.setdefault(allocation.tenant.namespace, Traffic()).add(allocation.traffic)
        return totals

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Name, labels and value of the figures of each namespace."""
        for namespace, traffic in self.traffic().items():
            labels = {"namespace": namespace}
            yield "orama_turn_allocations", labels, self._quota.held(namespace)
            for direction, octets, packets in (
                ("up", traffic.bytes_up, traffic.packets_up),
                ("down", traffic.bytes_down, traffic.packets_down),
            ):
                yield "orama_turn_bytes_total", {**labels, "direction": direction}, octets
                yield "orama_turn_packets_total", {**labels, "direction": direction}, packets

    def _tenant_changed(self, namespace: str) -> None:
        tenant = self._tenants.get(namespace)
        before, now = self._places.get(namespace), tenant and (tenant.relay_ports, tenant.sfu_media)
        self._places[namespace] = now
        for allocation in list(self._live.values()):
            if allocation.tenant.namespace != namespace:
                if now != before:
                    allocation.revise(allocation.tenant)  # what it reached may be the neighbour's now
            elif tenant is None:
                self.end(allocation, "namespace_removed")
            elif not all(
                tenant.relay_ports[0] <= relay.address[1] <= tenant.relay_ports[1] for relay in allocation.relays
            ):
                self.end(allocation, "block_moved")
            else:
                allocation.revise(tenant)
        if tenant is None:
            self._ended.pop(namespace, None)
            del self._places[namespace]

    def _any_relay(
        self, allocation: Allocation, family: Family, even: bool, pair: bool, make_relay: MakeRelay
    ) -> Relay | None:
        ports = self._ports[family]
        refused: list[int] = []
        try:
            while (port := ports.take(allocation.tenant.relay_ports, even=even, pair=pair)) is not None:
                relay = self._relay(allocation, family, port, make_relay)
                if relay is not None:
                    return relay
                refused.append(port)
            return None
        finally:
            for port in refused:
                ports.release(port)

    def _reserved_relay(self, allocation: Allocation, token: bytes, now: float) -> Relay | None:
        for family, ports in self._ports.items():
            port = ports.redeem(allocation.tenant.namespace, token, now)
            if port is not None:
                self._forget_kept(token)
                relay = self._relay(allocation, family, port, self._udp_relay)
                if relay is None:
                    ports.release(port)
                return relay
        return None

    def _relay(self, allocation: Allocation, family: Family, port: int, make_relay: MakeRelay) -> Relay | None:
        try:
            return make_relay((self._relay_ips[family], port), allocation)
        except (AddressInUse, CannotListenError):
            return None

    def _udp_relay(self, address: Address, allocation: Allocation) -> Relay:
        return UdpRelay(address, self._fabric, self._open_socket, allocation.receive, allocation.unreachable)

    def _release(self, relay: Relay) -> None:
        self._ports[relay.family].release(relay.address[1])


def _nobody(allocation: Allocation) -> None:
    """Is not told."""
