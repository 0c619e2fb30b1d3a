"""The TURN server without its sockets: packets of clients in, answers and relayed packets out.

Speaks RFC 8656 (UDP relays) and the Binding of RFC 8489. What comes from a client enters at
:meth:`Server.received`; what comes from a peer enters at ``Allocation.receive``. Nothing is kept for a
client before it has authenticated. TCP relays (RFC 6062), mobility (RFC 8016) and OAuth (RFC 7635) are
not spoken.
"""

from __future__ import annotations

import random as _random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from orama.net.fabric import Address, Buffer, Burst, Fabric
from orama.settings import TurnSettings
from orama.turn.allocation import Allocation, ChannelConflict, Full
from orama.turn.allocations import Allocations, NoPort, OverQuota
from orama.turn.authentication import Authenticator, Identity, Refused
from orama.turn.nonce import Nonces
from orama.turn.peers import Peers
from orama.turn.ratelimit import RateLimit
from orama.turn.relay import Link, OpenSocket, RelayUnavailable
from orama.turn.tenants import Tenant, Tenants
from orama.wire import stun
from orama.wire.channeldata import FIRST_CHANNEL, HEADER, LAST_CHANNEL
from orama.wire.indications import unpack_send
from orama.wire.stun import Attribute, Class, Family, Message, Method, StunError

#: RFC 8656, 3.2: what an allocation gets that asks for less.
DEFAULT_LIFETIME = 600
#: The protocol number of UDP, for REQUESTED-TRANSPORT.
UDP = 17
_FIRST_CHANNEL_BYTE = FIRST_CHANNEL >> 8
_NONCE_KEY_BITS = 256

_Attributes = list[tuple[Attribute[Any], Any]]


@frozen
class Request:
    """An authenticated request and where it came from."""

    message: Message
    link: Link
    client: Address
    identity: Identity
    #: The one of this five-tuple.
    allocation: Allocation | None
    now: float


class Server:
    """One process's TURN server.

    :param random: for relay ports, tokens and the nonce key; not to be guessed in production.
    :param open_socket: binds a relay address in the kernel.
    """

    def __init__(
        self,
        *,
        clock: IReactorTime,
        random: _random.Random,
        settings: TurnSettings,
        realm: str,
        relay_ip: str,
        tenants: Tenants,
        peers: Peers,
        fabric: Fabric,
        open_socket: OpenSocket,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._family = Family.IPV6 if ":" in relay_ip else Family.IPV4
        self._peers = peers
        self._fabric = fabric
        nonce_key = random.getrandbits(_NONCE_KEY_BITS).to_bytes(_NONCE_KEY_BITS // 8, "big")
        nonces = Nonces(nonce_key, settings.nonce_lifetime)
        self._authenticator = Authenticator(tenants, nonces, realm, settings.default_namespace)
        self._strangers = RateLimit(settings.unauthenticated_rate, settings.unauthenticated_burst)
        self._draining = False
        self._tenants = tenants
        self._drained_tenants: set[str] = set()
        tenants.watch(self._tenant_changed)
        #: Packets lost, by reason.
        self.drops: Counter[str] = Counter()
        #: Answers that nobody's credentials stood behind, and error responses by code.
        self.unauthenticated = 0
        self.refusals: Counter[int] = Counter()
        self._allocations = Allocations(
            clock=clock,
            random=random,
            settings=settings,
            relay_ip=relay_ip,
            tenants=tenants,
            peers=peers,
            fabric=fabric,
            open_socket=open_socket,
            drops=self.drops,
        )

    # ---- from clients -----------------------------------------------------------------------

    def received(self, link: Link, packets: Burst, client: Address, *, verified: bool = False) -> None:
        """Take a burst of one client.

        :param verified: the client's address cannot be forged (it is on a stream).
        """
        now = self._clock.seconds()
        allocation = self._allocations.find(link, client, now)
        at, count = 0, len(packets)
        while at < count:
            packet = packets[at]
            if len(packet) < HEADER.size or not client[1]:
                self.drops["malformed"] += 1
            elif packet[0] >= _FIRST_CHANNEL_BYTE:
                if allocation is not None:
                    at = allocation.forward(packets, at, now)
                    continue
                self.drops["no_allocation"] += 1
            else:
                if allocation is not None and (end := self._send_run(allocation, packets, at, now)) > at:
                    at = end
                    continue
                self._stun(link, packet, client, allocation, now, verified)
                allocation = self._allocations.find(link, client, now)
            at += 1

    def _send_run(self, allocation: Allocation, packets: Burst, start: int, now: float) -> int:
        """Relay the run of plain Send indications for one peer that begins at *start*; gives where it ends."""
        payloads: list[Buffer] = []
        peer: Address | None = None
        for packet in packets[start:]:
            plain = unpack_send(packet)
            if plain is None or (peer is not None and plain[0] != peer):
                break
            peer = plain[0]
            payloads.append(plain[1])
        if peer is not None:
            allocation.send(payloads, peer, now)
        return start + len(payloads)

    def disconnected(self, link: Link, client: Address) -> None:
        """The client's stream is gone, and its allocation with it (RFC 8656, 7)."""
        allocation = self._allocations.find(link, client, self._clock.seconds())
        if allocation is not None:
            self._allocations.end(allocation, "disconnected")

    def has_allocation(self, link: Link, client: Address) -> bool:
        return self._allocations.find(link, client, self._clock.seconds()) is not None

    def _stun(
        self, link: Link, packet: Buffer, client: Address, allocation: Allocation | None, now: float, verified: bool
    ) -> None:
        try:
            message = stun.parse(packet)
        except StunError:
            self.drops["malformed"] += 1
            return
        if message.cls == Class.INDICATION:
            self._indication(message, allocation, now)
            return
        if message.cls != Class.REQUEST:
            self.drops["unexpected"] += 1
            return
        authenticated = False
        try:
            if message.method in _METHODS:
                held = b"" if allocation is None else allocation.key
                identity = self._authenticator.identify(message, client, now, held)
                authenticated = True
                answer = self._obey(Request(message, link, client, identity, allocation, now))
            else:
                answer = self._binding(message, client)
        except Refused as refused:
            answer = self._refusal(message, client, refused, now)
        if not authenticated:
            if not (verified or allocation is not None or self._strangers.take(client[0], now)):
                self.drops["rate_limited"] += 1
                return
            self.unauthenticated += 1
        link.send((answer,), client)

    def _binding(self, message: Message, client: Address) -> bytes:
        """Binding (RFC 8489, 12); 400 for a method that we do not have."""
        if message.method != Method.BINDING or message.malformed:
            raise Refused(400)
        if message.unknown:
            raise Refused(420, attributes=[(stun.UNKNOWN_ATTRIBUTES, message.unknown)])
        return stun.build(
            message.method,
            Class.SUCCESS,
            message.transaction_id,
            [(stun.XOR_MAPPED_ADDRESS, client)],
            fingerprint=stun.FINGERPRINT in message,
        )

    def _obey(self, request: Request) -> bytes:
        """Run an authenticated request; every answer from here on is signed."""
        message, key = request.message, request.identity.key
        sha256 = stun.MESSAGE_INTEGRITY not in message
        kind = Class.SUCCESS
        try:
            if message.unknown:  # RFC 8489, 6.3.1
                raise Refused(420, attributes=[(stun.UNKNOWN_ATTRIBUTES, message.unknown)])
            if message.malformed:
                raise Refused(400)
            attributes = _METHODS[Method(message.method)](self, request)
        except Refused as refused:
            kind, attributes = Class.ERROR, [(stun.ERROR_CODE, (refused.code, "")), *refused.attributes]
            self.refusals[refused.code] += 1
        return stun.build(
            message.method,
            kind,
            message.transaction_id,
            attributes,
            key=key,
            sha256=sha256,
            fingerprint=stun.FINGERPRINT in message,
        )

    def _refusal(self, message: Message, client: Address, refused: Refused, now: float) -> bytes:
        """The answer to a stranger: short, unsigned, without a reason phrase."""
        self.refusals[refused.code] += 1
        attributes: _Attributes = [(stun.ERROR_CODE, (refused.code, "")), *refused.attributes]
        if refused.challenge:
            attributes += self._authenticator.challenge(client, now)
        return stun.build(message.method, Class.ERROR, message.transaction_id, attributes)

    # ---- the methods of TURN ----------------------------------------------------------------

    def _allocate(self, request: Request) -> _Attributes:
        """RFC 8656, 7.2; the numbers are its steps. Authentication, 1, is behind us."""
        message, now = request.message, request.now
        there = request.allocation
        if there is not None:  # 2
            if there.transaction_id == message.transaction_id and _same_user(there, request.identity):
                return there.answer
            raise Refused(437)
        transport = message.get(stun.REQUESTED_TRANSPORT)
        if transport is None:  # 3
            raise Refused(400)
        if transport != UDP:
            raise Refused(442)
        # 4: DONT-FRAGMENT is granted as it is; the kernel sets DF on what a relay sends.
        even = message.get(stun.EVEN_PORT)
        token = message.get(stun.RESERVATION_TOKEN)
        family = message.get(stun.REQUESTED_ADDRESS_FAMILY)
        additional = message.get(stun.ADDITIONAL_ADDRESS_FAMILY)
        if token is not None and (even is not None or family is not None or additional is not None):  # 5, 6
            raise Refused(400)
        if family is not None and family != self._family:  # 7
            raise Refused(440)
        if additional is not None and (family is not None or even or additional != Family.IPV6):  # 9, 10
            raise Refused(400)
        if self._draining or request.identity.tenant.namespace in self._drained_tenants:
            raise Refused(508)
        try:
            allocation = self._allocations.make(
                request.link,
                request.client,
                request.identity.tenant,
                request.identity.username.user,
                now,
                even=even is not None,
                pair=bool(even),
                token=token,
            )
        except OverQuota:  # 11
            raise Refused(486) from None
        except NoPort:  # 5, 8
            raise Refused(508) from None
        lifetime = self._lifetime(allocation, message, now)
        allocation.expires = now + lifetime
        answer: _Attributes = [
            (stun.XOR_RELAYED_ADDRESS, allocation.relay.address),
            (stun.LIFETIME, lifetime),
            (stun.XOR_MAPPED_ADDRESS, request.client),
        ]
        if even:
            answer.append((stun.RESERVATION_TOKEN, self._allocations.reserve(allocation, now)))
        if additional is not None and self._family != Family.IPV6:
            answer.append((stun.ADDRESS_ERROR_CODE, (Family.IPV6, 440)))
        allocation.transaction_id, allocation.answer = message.transaction_id, answer
        allocation.key = request.identity.key
        return answer

    def _refresh(self, request: Request) -> _Attributes:
        """RFC 8656, 8.2."""
        allocation, now = self._own(request), request.now
        family = request.message.get(stun.REQUESTED_ADDRESS_FAMILY)
        if family is not None and family != self._family:
            raise Refused(443)
        if request.message.get(stun.LIFETIME) == 0:
            self._allocations.end(allocation, "released")
            return [(stun.LIFETIME, 0)]
        allocation.key = request.identity.key
        lifetime = self._lifetime(allocation, request.message, now)
        allocation.expires = now + lifetime
        return [(stun.LIFETIME, lifetime)]

    def _create_permission(self, request: Request) -> _Attributes:
        """RFC 8656, 10.2: all of the peers or none."""
        allocation = self._own(request)
        peers = request.message.all(stun.XOR_PEER_ADDRESS)
        if not peers:
            raise Refused(400)
        ips = {ip for ip, _ in peers}
        for ip in ips:
            self._check_ip(allocation.tenant, ip)
        try:
            if any(self._is_elsewhere(allocation.tenant, ip) for ip in ips):
                allocation.relay.open()
            allocation.permit(ips, request.now)
        except (Full, RelayUnavailable):
            raise Refused(508) from None
        return []

    def _channel_bind(self, request: Request) -> _Attributes:
        """RFC 8656, 12.2."""
        allocation = self._own(request)
        number = request.message.get(stun.CHANNEL_NUMBER)
        peer = request.message.get(stun.XOR_PEER_ADDRESS)
        if number is None or peer is None or not FIRST_CHANNEL <= number <= LAST_CHANNEL:
            raise Refused(400)
        self._check_ip(allocation.tenant, peer[0])
        if not self._peers.may_reach(allocation.tenant, peer):
            raise Refused(403)
        try:
            allocation.check_channel(number, peer, request.now)
            if not self._fabric.has(peer) or self._is_elsewhere(allocation.tenant, peer[0]):
                allocation.relay.open()
            allocation.bind(number, peer, request.now)
        except ChannelConflict:
            raise Refused(400) from None
        except (Full, RelayUnavailable):
            raise Refused(508) from None
        return []

    def _indication(self, message: Message, allocation: Allocation | None, now: float) -> None:
        """Send (RFC 8656, 11.2); a Binding indication only keeps a NAT open (RFC 8445, 11)."""
        if message.method == Method.BINDING:
            return
        peer, data = message.get(stun.XOR_PEER_ADDRESS), message.get(stun.DATA)
        if message.method != Method.SEND or peer is None or data is None or message.unknown:
            self.drops["malformed"] += 1
        elif allocation is None:
            self.drops["no_allocation"] += 1
        else:
            allocation.send((data,), peer, now)

    # ---- what the methods share -------------------------------------------------------------

    def _own(self, request: Request) -> Allocation:
        """The five-tuple's allocation, when it is the sender's (RFC 8656, 5)."""
        allocation = request.allocation
        if allocation is None:
            raise Refused(437)
        if not _same_user(allocation, request.identity):
            raise Refused(441)
        return allocation

    def _check_ip(self, tenant: Tenant, ip: str) -> None:
        if (":" in ip) != (self._family == Family.IPV6):
            raise Refused(403 if self._peers.is_inward(ip) else 443)
        if not self._peers.may_reach_ip(tenant, ip):
            raise Refused(403)

    def _is_elsewhere(self, tenant: Tenant, ip: str) -> bool:
        """Whether a permission for *ip* names peers that the fabric does not have."""
        if self._peers.is_allowed_ip(tenant, ip):
            return True
        return not any(
            self._fabric.has((ip, port))
            for media_ip, first, last in tenant.sfu_media
            if media_ip == ip
            for port in range(first, last + 1)
        )

    def _lifetime(self, allocation: Allocation, message: Message, now: float) -> int:
        """RFC 8656, 7.2: what is asked for, between the default and the maximum, within the total age."""
        asked = message.get(stun.LIFETIME) or DEFAULT_LIFETIME
        lifetime = max(DEFAULT_LIFETIME, min(asked, self._settings.max_lifetime))
        return max(0, min(lifetime, int(allocation.created + self._settings.max_age - now)))

    # ---- from outside -----------------------------------------------------------------------

    def __len__(self) -> int:
        """How many allocations there are."""
        return len(self._allocations)

    def tick(self) -> None:
        """End what has expired; to be called about once a second."""
        self._allocations.expire(self._clock.seconds())

    def drain(self) -> None:
        """Make no new allocations; the ones that are there go on."""
        self._draining = True

    def undrain(self) -> None:
        """Make allocations again."""
        self._draining = False

    def drain_tenant(self, namespace: str) -> None:
        """Make no new allocations for *namespace* (508); the ones that are there go on."""
        self._drained_tenants.add(namespace)

    def undrain_tenant(self, namespace: str) -> None:
        """Make allocations for *namespace* again."""
        self._drained_tenants.discard(namespace)

    def allocations_of(self, namespace: str) -> int:
        """How many a namespace has."""
        return self._allocations.of_namespace(namespace)

    def _tenant_changed(self, namespace: str) -> None:
        if self._tenants.get(namespace) is None:
            self._drained_tenants.discard(namespace)

    def stop(self) -> None:
        """End every allocation."""
        self._tenants.unwatch(self._tenant_changed)
        self._allocations.stop()

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Name, labels and value of every figure, for Prometheus."""
        yield from self._allocations.samples()
        for reason, count in sorted(self.drops.items()):
            yield "orama_turn_dropped_total", {"reason": reason}, count
        for code, count in sorted(self.refusals.items()):
            yield "orama_turn_refused_total", {"code": str(code)}, count
        yield "orama_turn_unauthenticated_total", {}, self.unauthenticated


def _same_user(allocation: Allocation, identity: Identity) -> bool:
    """Whether they are one's own, with whichever credentials."""
    return (allocation.tenant.namespace, allocation.user) == (identity.tenant.namespace, identity.username.user)


_METHODS: Mapping[int, Callable[[Server, Request], _Attributes]] = {
    Method.ALLOCATE: Server._allocate,
    Method.REFRESH: Server._refresh,
    Method.CREATE_PERMISSION: Server._create_permission,
    Method.CHANNEL_BIND: Server._channel_bind,
}
