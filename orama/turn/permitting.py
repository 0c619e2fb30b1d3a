"""CreatePermission and ChannelBind (RFC 8656, 10 and 12): which peers an allocation may exchange packets with."""

from __future__ import annotations

from orama.net.fabric import Fabric
from orama.turn.allocation import Allocation, ChannelConflict, Full
from orama.turn.peers import Peers
from orama.turn.relay import Relay, RelayUnavailable
from orama.turn.request import Attributes, Refused, Request
from orama.turn.tenants import Tenant
from orama.wire import stun
from orama.wire.channeldata import FIRST_CHANNEL, LAST_CHANNEL


class Permitting:
    """The two methods."""

    def __init__(self, peers: Peers, fabric: Fabric) -> None:
        self._peers = peers
        self._fabric = fabric

    def create_permission(self, request: Request) -> Attributes:
        """RFC 8656, 10.2: all of the peers or none."""
        allocation = request.own()
        peers = request.message.all(stun.XOR_PEER_ADDRESS)
        if not peers:
            raise Refused(400)
        relays = {ip: self.relay_to(allocation, ip) for ip, _ in peers}
        try:
            for ip, relay in relays.items():
                if self._is_elsewhere(allocation.tenant, ip):
                    relay.open()
            allocation.permit(relays.keys(), request.now)
        except (Full, RelayUnavailable):
            raise Refused(508) from None
        return []

    def channel_bind(self, request: Request) -> Attributes:
        """RFC 8656, 12.2."""
        allocation = request.own()
        number = request.message.get(stun.CHANNEL_NUMBER)
        peer = request.message.get(stun.XOR_PEER_ADDRESS)
        if number is None or peer is None or not FIRST_CHANNEL <= number <= LAST_CHANNEL:
            raise Refused(400)
        relay = self.relay_to(allocation, peer[0])
        if not relay.has_packets:  # what a channel carries
            raise Refused(400)
        if not self._peers.may_reach(allocation.tenant, peer):
            raise Refused(403)
        try:
            allocation.check_channel(number, peer, request.now)
            if not self._fabric.has(peer) or self._is_elsewhere(allocation.tenant, peer[0]):
                relay.open()
            allocation.bind(number, peer, request.now)
        except ChannelConflict:
            raise Refused(400) from None
        except (Full, RelayUnavailable):
            raise Refused(508) from None
        return []

    def relay_to(self, allocation: Allocation, ip: str) -> Relay:
        """The relay that reaches *ip*, which the rules open.

        :raises Refused: 443 for an address of a family that the allocation does not have, 403 for one that is shut or
            points inside.
        """
        relay = allocation.relay_to(ip)
        if relay is None:
            raise Refused(403 if self._peers.is_inward(ip) else 443)
        if not self._peers.may_reach_ip(allocation.tenant, ip):
            raise Refused(403)
        return relay

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
