"""Allocate and Refresh (RFC 8656, 7 and 8): who gets an allocation, for how long, and when it is given back."""

from __future__ import annotations

from orama.settings import TurnSettings
from orama.turn.allocation import Allocation
from orama.turn.allocations import Allocations, NoPort, OverQuota
from orama.turn.request import Attributes, Refused, Request
from orama.wire import stun
from orama.wire.stun import Family, Message

#: RFC 8656, 3.2: what an allocation gets that asks for less.
DEFAULT_LIFETIME = 600
#: The protocol number of UDP, for REQUESTED-TRANSPORT.
UDP = 17


class Allocating:
    """The two methods, and the drain that makes them refuse.

    :param family: of the relay addresses.
    """

    def __init__(self, allocations: Allocations, settings: TurnSettings, family: Family) -> None:
        self._allocations = allocations
        self._settings = settings
        self._family = family
        #: Make no new allocations: at all, or for these namespaces.
        self.draining = False
        self.drained: set[str] = set()

    def allocate(self, request: Request) -> Attributes:
        """RFC 8656, 7.2; the numbers are its steps. Authentication, 1, is behind us."""
        message, now = request.message, request.now
        there = request.allocation
        if there is not None:  # 2
            if there.transaction_id == message.transaction_id and request.is_owner_of(there):
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
        if self.draining or request.identity.tenant.namespace in self.drained:
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
        answer: Attributes = [
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

    def refresh(self, request: Request) -> Attributes:
        """RFC 8656, 8.2."""
        allocation, now = request.own(), request.now
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

    def _lifetime(self, allocation: Allocation, message: Message, now: float) -> int:
        """RFC 8656, 7.2: what is asked for, between the default and the maximum, within the total age."""
        asked = message.get(stun.LIFETIME) or DEFAULT_LIFETIME
        lifetime = max(DEFAULT_LIFETIME, min(asked, self._settings.max_lifetime))
        return max(0, min(lifetime, int(allocation.created + self._settings.max_age - now)))
