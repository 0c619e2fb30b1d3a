"""Allocate and Refresh (RFC 8656, 7 and 8): who gets an allocation, for how long, and when it is given back."""

from __future__ import annotations

from orama.net.fabric import Address
from orama.settings import TurnSettings
from orama.turn.allocation import Allocation
from orama.turn.allocations import Allocations, MakeRelay, NoPort, OverQuota
from orama.turn.alternates import Alternates, Configured
from orama.turn.mobility import Mobility
from orama.turn.request import Attributes, Refused, Request
from orama.wire import stun
from orama.wire.stun import Family, Message

#: RFC 8656, 3.2: what an allocation gets that asks for less.
DEFAULT_LIFETIME = 600
#: Of each family in one answer.
MAX_ALTERNATES = 4
#: The protocol numbers of REQUESTED-TRANSPORT.
UDP = 17
TCP = 6


class Allocating:
    """The two methods, and the drain that makes the first one refuse.

    :param make_tcp_relay: for TCP allocations.
    """

    def __init__(
        self, allocations: Allocations, settings: TurnSettings, mobility: Mobility, make_tcp_relay: MakeRelay
    ) -> None:
        self._allocations = allocations
        self._settings = settings
        self._mobility = mobility
        self._make_tcp_relay = make_tcp_relay
        #: May be replaced at any time.
        self.alternates: Alternates = Configured(settings.alternate_servers)
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
        tcp = self._is_tcp(request)  # 3
        mobile = self._mobility.is_asked_for(request, tcp=tcp)
        # 4: DONT-FRAGMENT is understood, and there is nothing to refuse.
        even = message.get(stun.EVEN_PORT)
        token = message.get(stun.RESERVATION_TOKEN)
        families = self._families(message)
        if self.draining or request.identity.tenant.namespace in self.drained:
            raise self._elsewhere(request)  # 11
        try:
            allocation = self._allocations.make(
                request.link,
                request.client,
                request.identity.tenant,
                request.identity.username.user,
                now,
                families=[family for family in families if family in self._allocations.families],
                even=even is not None,
                pair=bool(even),
                token=token,
                make_relay=self._make_tcp_relay if tcp else None,
            )
        except OverQuota:  # 10
            raise Refused(486) from None
        except NoPort:  # 5, 8, 9
            raise Refused(508) from None
        lifetime = self._lifetime(allocation, message, now)
        allocation.extend(allocation.relays, now + lifetime)
        answer: Attributes = [(stun.XOR_RELAYED_ADDRESS, relay.address) for relay in allocation.relays]
        answer += [(stun.LIFETIME, lifetime), (stun.XOR_MAPPED_ADDRESS, request.client)]
        if even:
            answer.append((stun.RESERVATION_TOKEN, self._allocations.reserve(allocation, now)))
        if token is None:
            for family in families:  # 9
                if allocation.relay_of(family) is None:
                    code = 508 if family in self._allocations.families else 440
                    draft = stun.ADDITIONAL_ADDRESS_FAMILY not in message
                    row = stun.DRAFT_ADDRESS_ERROR_CODE if draft else stun.ADDRESS_ERROR_CODE
                    answer.append((row, (family, code)))
        if mobile:
            answer.append((stun.MOBILITY_TICKET, self._mobility.begin(allocation)))
        allocation.transaction_id, allocation.answer = message.transaction_id, answer
        allocation.key = request.identity.key
        return answer

    def _elsewhere(self, request: Request) -> Refused:
        """300 with servers to try, the first of the client's own family (RFC 8489, 10); 508 when there is none."""
        own = Family.IPV6 if ":" in request.client[0] else Family.IPV4
        found: list[Address] = []
        for family in (own, Family.IPV4 if own == Family.IPV6 else Family.IPV6):
            others = self.alternates(request.identity.tenant.namespace, family, request.link.transport)
            if not others and family == own:
                return Refused(508)
            found += others[:MAX_ALTERNATES]
        return Refused(300, attributes=[(stun.ALTERNATE_SERVER, address) for address in found])

    def _is_tcp(self, request: Request) -> bool:
        """Whether a TCP allocation is asked for (RFC 6062, 5.1), where there are any.

        :raises Refused: 442 for a transport that we do not have, 400 for none, and for TCP where the client came over
            UDP or asks for what packets have.
        """
        message = request.message
        transport = message.get(stun.REQUESTED_TRANSPORT)
        if transport is None:
            raise Refused(400)
        if transport == UDP:
            return False
        if transport != TCP or not self._settings.tcp_relays:
            raise Refused(442)
        of_packets = (stun.DONT_FRAGMENT, stun.EVEN_PORT, stun.RESERVATION_TOKEN)
        if not request.verified or any(attribute in message for attribute in of_packets):
            raise Refused(400)
        return True

    def _families(self, message: Message) -> tuple[Family, ...]:
        """The families that are asked for, of which at least one can be had (RFC 8656, 7.2, steps 5 to 9).

        Who asks for none gets IPv4, and IPv6 where that is all there is: step 7 has 440 there, but browsers name no
        family, and a client looks at the one that it is given (7.3).

        :raises Refused: 400 for what cannot be asked for together, 440 for a family that cannot be had.
        """
        there = self._allocations.families
        requested = message.get(stun.REQUESTED_ADDRESS_FAMILY)
        additional = message.get(stun.ADDITIONAL_ADDRESS_FAMILY)
        if additional is None:
            additional = message.get(stun.DRAFT_ADDITIONAL_ADDRESS_FAMILY)
        even = message.get(stun.EVEN_PORT)
        if stun.RESERVATION_TOKEN in message:  # 5
            if even is not None or requested is not None or additional is not None:
                raise Refused(400)
            return ()
        if requested is not None:
            if additional is not None:  # 6
                raise Refused(400)
            if requested not in there:  # 7
                raise Refused(440)
            return (Family(requested),)
        if additional is not None:
            if even or additional != Family.IPV6:  # 8, 9
                raise Refused(400)
            return (Family.IPV4, Family.IPV6)
        return (Family.IPV4,) if Family.IPV4 in there else (Family.IPV6,)

    def refresh(self, request: Request) -> Attributes:
        """RFC 8656, 8: all of the allocation, or its relay of one family alone.

        With a ticket it is the ticket's allocation, which gets a second five-tuple (RFC 8016, 3.2.2).
        """
        message, now = request.message, request.now
        ticket = message.get(stun.MOBILITY_TICKET)
        mobile = None if ticket is None else self._mobility.find(request, ticket)
        if mobile is not None and (answer := mobile.answer_again(request)):
            return answer
        allocation = request.own() if mobile is None else mobile.allocation
        family = message.get(stun.REQUESTED_ADDRESS_FAMILY)
        relays = [relay for relay in allocation.relays if family is None or relay.family == family]
        if not relays:
            raise Refused(443)
        if message.get(stun.LIFETIME) == 0:
            for relay in relays:
                self._allocations.drop(allocation, relay)
            return [(stun.LIFETIME, 0)]
        allocation.key = request.identity.key
        lifetime = self._lifetime(allocation, message, now)
        allocation.extend(relays, now + lifetime)
        answer = [(stun.LIFETIME, lifetime)]
        return answer if mobile is None else self._mobility.resume(mobile, request, answer)

    def _lifetime(self, allocation: Allocation, message: Message, now: float) -> int:
        """RFC 8656, 7.2: what is asked for, between the default and the maximum, within the total age."""
        asked = message.get(stun.LIFETIME) or DEFAULT_LIFETIME
        lifetime = max(DEFAULT_LIFETIME, min(asked, self._settings.max_lifetime))
        return max(0, min(lifetime, int(allocation.created + self._settings.max_age - now)))
