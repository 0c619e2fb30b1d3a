"""What a TURN server has to hold after what was asked of it: the model that the state machine compares it with.

Written from RFC 8656 and ``docs/turn.rst``, in plain sight and without a line of the server.
"""

from __future__ import annotations

from ipaddress import ip_network

from attrs import define, evolve, field, frozen

from orama.net.fabric import Address
from tests.turn.world import FAR_SFU, INTERNAL_IP, MYAPP, OTHER, OTHER_RELAY, OTHER_SFU, PEER, SFU

PER_USER, PER_NAMESPACE = 2, 3
MAX_LIFETIME, MAX_AGE = 1200, 3000
RESERVATION, PERMISSION, CHANNEL = 30, 300, 600

#: Few ports, so that they run out.
WIDE = evolve(MYAPP, relay_ports=(50000, 50003))
#: The same namespace after its networks were taken away.
NARROW = evolve(WIDE, allowed_peers=())
FEW = evolve(OTHER, relay_ports=(50800, 50803), allowed_peers=(ip_network("192.0.2.0/24"),))

OTHER_PORT = (PEER[0], 4001)
NO_PORT = (PEER[0], 0)
#: A relay of the first namespace: an allocation may reach another one's.
HAIRPIN = (INTERNAL_IP, 50001)
LISTENER = (INTERNAL_IP, 3478)
LOOPBACK = ("127.0.0.1", 80)
FOREIGN = ("192.0.2.9", 9)
INWARD6 = ("::1", 80)
ABROAD6 = ("2606:4700::1", 80)
PEERS = (
    *(SFU, FAR_SFU, PEER, OTHER_PORT, NO_PORT, HAIRPIN, OTHER_SFU, OTHER_RELAY, LISTENER),
    *(LOOPBACK, FOREIGN, INWARD6, ABROAD6),
)


@frozen
class Who:
    """A user."""

    namespace: str
    user: str


USERS = (Who("myapp", "ann"), Who("myapp", "bob"), Who("myapp", ""), Who("other", "eve"))


@define
class Held:
    """An allocation, as its client has to believe it is."""

    who: Who
    relay: Address
    created: float
    expires: float
    transaction: bytes
    permissions: dict[str, float] = field(factory=dict)
    channels: dict[int, tuple[Address, float]] = field(factory=dict)

    def permitted(self, ip: str, now: float) -> bool:
        return self.permissions.get(ip, 0) > now

    def channel_of(self, peer: Address, now: float) -> int | None:
        return next((number for number, (to, expires) in self.channels.items() if to == peer and expires > now), None)


@define
class Model:
    """Everything that was granted."""

    now: float
    narrow: bool = False
    other_gone: bool = False
    #: Namespaces that get no new allocations.
    draining: set[str] = field(factory=set)
    #: By five-tuple.
    held: dict[int, Held] = field(factory=dict)
    #: Token to who reserved it, the port and the time until which it is kept.
    reserved: dict[bytes, tuple[Who, int, float]] = field(factory=dict)

    def served(self, namespace: str) -> bool:
        return namespace != "other" or not self.other_gone

    def ips(self, namespace: str) -> set[str]:
        """IPs for which a permission is to be had."""
        if namespace == "other":
            return {INTERNAL_IP, FOREIGN[0]}
        return {INTERNAL_IP, FAR_SFU[0]} if self.narrow else {INTERNAL_IP, FAR_SFU[0], PEER[0]}

    def reaches(self, namespace: str, peer: Address) -> bool:
        """Whether packets may pass to and from *peer*."""
        if namespace == "other":
            return peer in {OTHER_SFU, FOREIGN}
        if self.narrow:
            return peer in {SFU, FAR_SFU}
        if peer in {OTHER_SFU, OTHER_RELAY}:
            return self.other_gone
        first, last = WIDE.relay_ports
        return peer in {SFU, FAR_SFU, PEER, OTHER_PORT} or (peer[0] == INTERNAL_IP and first <= peer[1] <= last)

    def open_to(self, slot: int) -> Address:
        """The peer of a five-tuple's channel, or else one that it has a permission for, or else the SFU."""
        held = self.held.get(slot)
        if held is None:
            return SFU
        bound = [to for to, expires in held.channels.values() if expires > self.now]
        permitted = [to for to in PEERS if held.permitted(to[0], self.now) and self.reaches(held.who.namespace, to)]
        return [*bound, *permitted, SFU][0]

    def refusal(self, namespace: str, ip: str) -> int:
        """The code with which a permission for *ip* is refused, 0 when it is not."""
        if ip in self.ips(namespace):
            return 0
        return 443 if ip == ABROAD6[0] else 403

    def quota_left(self, who: Who) -> bool:
        mine = [held.who for held in self.held.values() if held.who.namespace == who.namespace]
        return len(mine) < PER_NAMESPACE and (not who.user or mine.count(who) < PER_USER)

    def may_reserve(self, who: Who) -> bool:
        """As many ports may wait for somebody as he may have allocations."""
        waiting = [owner for owner, _, _ in self.reserved.values()]
        return waiting.count(who) < (PER_USER if who.user else PER_NAMESPACE)

    def ports(self, namespace: str, even: bool | None) -> set[int]:
        """Ports that an Allocate may get; *even* as EVEN-PORT says it."""
        first, last = (WIDE if namespace == "myapp" else FEW).relay_ports
        taken = {held.relay[1] for held in self.held.values()} | {port for _, port, _ in self.reserved.values()}
        free = set(range(first, last + 1)) - taken
        if even is None:
            return free
        return {port for port in free if port % 2 == 0 and (not even or port + 1 in free)}

    def lifetime(self, asked: int | None, created: float) -> int:
        """RFC 8656, 7.2, within the total age."""
        return max(0, min(max(600, min(asked or 600, MAX_LIFETIME)), int(created + MAX_AGE - self.now)))

    def expiries(self) -> list[float]:
        """When what is there now will be over, in order."""
        times = {until for _, _, until in self.reserved.values()} | {held.expires for held in self.held.values()}
        for held in self.held.values():
            times |= {until for until in held.permissions.values() if until > self.now}
            times |= {until for _, until in held.channels.values() if until > self.now}
        return sorted(times)

    def pass_time(self, seconds: float) -> None:
        """Forget what has expired."""
        self.now += seconds
        self.held = {slot: held for slot, held in self.held.items() if held.expires > self.now}
        self.reserved = {token: kept for token, kept in self.reserved.items() if kept[2] > self.now}

    def revise(self) -> None:
        """The rules have changed: what they no longer grant is gone."""
        self.held = {slot: held for slot, held in self.held.items() if self.served(held.who.namespace)}
        for held in self.held.values():
            ips, bound = self.ips(held.who.namespace), held.channels.items()
            held.permissions = {ip: until for ip, until in held.permissions.items() if ip in ips}
            held.channels = {
                number: (to, until) for number, (to, until) in bound if self.reaches(held.who.namespace, to)
            }
