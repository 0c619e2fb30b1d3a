"""Mobility (RFC 8016): an allocation that follows its client to another address, by a ticket that only we can read.

A ticket names the allocation and how often it has moved, encrypted and authenticated under a key of this
process, so that nothing has to be kept per ticket and only the newest one is good. Who shows it has to be
the allocation's user besides. After that the allocation has two five-tuples, until the client sends data
on the second one.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import random as _random
import struct
from collections import Counter
from collections.abc import Sequence

from attrs import define, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from orama.net.fabric import Address, Buffer, Burst
from orama.settings import TurnSettings
from orama.turn.allocation import Allocation
from orama.turn.allocations import Allocations
from orama.turn.relay import Link
from orama.turn.request import Attributes, Refused, Request
from orama.turn.shared import Crew
from orama.wire import stun
from orama.wire.channeldata import FIRST_CHANNEL

#: RFC 8016, 3.2.2 wants at least 30 s for the retransmissions of a Refresh; RFC 8489, 6.2.1 has them go on for 39.5 s.
RETRANSMISSION_TIME = 40.0
_KEY_LENGTH = 32
#: Number of the allocation, and of its moves: six bytes and two.
_content = struct.Struct("!Q")
_NUMBER_BITS = 48
_MOVES_BITS = 16
MOVES = (1 << _MOVES_BITS) - 1
#: Characters. coturn's client takes no longer ticket, and none with a NUL byte in it.
TICKET_LENGTH = 32
_FIRST_CHANNEL_BYTE = FIRST_CHANNEL >> 8
_SEND_INDICATION = b"\x00\x16"


class Tickets:
    """Writes and reads tickets (RFC 8016, appendix A has the idea).

    Encrypted as RFC 5297 has it, which needs no nonce: no two are alike, as no two have the same content.

    :param random: for the key, unless there is one; not to be guessed in production.
    """

    def __init__(self, random: _random.Random, key: bytes | None = None) -> None:
        self._cipher = AESSIV(random.randbytes(_KEY_LENGTH) if key is None else key)

    def write(self, number: int, moves: int) -> bytes:
        """A ticket, as text. The number of moves is told up to its 16 lowest bits."""
        content = _content.pack(number << _MOVES_BITS | moves & MOVES)
        return base64.b64encode(self._cipher.encrypt(content, None))

    def read(self, ticket: bytes) -> tuple[int, int] | None:
        """Number and moves, None when we did not write it."""
        if len(ticket) != TICKET_LENGTH:
            return None
        try:
            content = self._cipher.decrypt(base64.b64decode(ticket, validate=True), None)
        except (binascii.Error, InvalidTag):
            return None
        number, moves = divmod(_content.unpack(content)[0], MOVES + 1)
        return number, moves


@frozen
class Resumption:
    """A Refresh that brought a second five-tuple, and its answer, for when it comes again."""

    link: Link
    client: Address
    transaction_id: bytes
    answer: Attributes
    when: float

    def is_repeated_by(self, request: Request) -> bool:
        """Whether *request* is that Refresh once more."""
        return (
            request.link is self.link
            and request.client == self.client
            and request.message.transaction_id == self.transaction_id
            and request.now - self.when <= RETRANSMISSION_TIME
        )


@define(eq=False)
class Mobile:
    """A mobile allocation."""

    allocation: Allocation
    number: int
    moves: int = 0
    last: Resumption | None = None

    def answer_again(self, request: Request) -> Attributes | None:
        """What the last Refresh with a ticket was answered, when *request* is that one."""
        return self.last.answer if self.last is not None and self.last.is_repeated_by(request) else None


class NoLink:
    """The way to a client that has gone and may come back: what is sent to it is lost."""

    transport = "none"

    def __init__(self, drops: Counter[str]) -> None:
        self._drops = drops

    def send(self, packets: Burst, to: Address, headers: Sequence[Buffer] | None = None) -> None:
        self._drops["no_client"] += len(packets)


class Mobility:
    """The mobile allocations of a process.

    :param random: for tickets; not to be guessed in production.
    :param drops: packets lost, by reason.
    :param crew: where there are several workers, so that each can tell whose a ticket is.
    """

    def __init__(
        self,
        allocations: Allocations,
        random: _random.Random,
        settings: TurnSettings,
        drops: Counter[str],
        crew: Crew | None = None,
    ) -> None:
        self._allocations = allocations
        self._random = random
        self._crew = crew
        self._tickets = Tickets(random, None if crew is None else hmac.digest(crew.key, b"tickets", "sha256"))
        self._settings = settings
        self._drops = drops
        self._mobiles: dict[int, Mobile] = {}
        self._numbers: dict[Allocation, int] = {}
        allocations.ended = self._ended

    def __len__(self) -> int:
        return len(self._mobiles)

    # ---- tickets ----------------------------------------------------------------------------

    def is_asked_for(self, request: Request, *, tcp: bool) -> bool:
        """Whether an Allocate asks for a ticket (RFC 8016, 3.1.2).

        :param tcp: it is for a TCP allocation, whose data connections would stay behind.
        :raises Refused: 400 for one that brings a ticket, 405 where there are none.
        """
        ticket = request.message.get(stun.MOBILITY_TICKET)
        if ticket is None:
            return False
        if ticket:
            raise Refused(400)
        if tcp or not self._settings.mobility:
            raise Refused(405)
        return True

    def begin(self, allocation: Allocation) -> bytes:
        """Make *allocation* mobile; gives its first ticket."""
        while (number := self._number()) in self._mobiles:
            pass
        self._mobiles[number] = Mobile(allocation, number)
        self._numbers[allocation] = number
        return self._tickets.write(number, 0)

    def _number(self) -> int:
        number = self._random.getrandbits(_NUMBER_BITS)
        return number if self._crew is None else self._crew.mark(number)

    def number_of(self, ticket: bytes) -> int | None:
        """The number of the allocation that a ticket is for, ours or another worker's; None when nobody wrote it."""
        found = self._tickets.read(ticket)
        return None if found is None else found[0]

    def named(self, ticket: bytes) -> Allocation | None:
        """Whose that ticket is."""
        found = self._tickets.read(ticket)
        mobile = None if found is None else self._mobiles.get(found[0])
        return None if mobile is None else mobile.allocation

    # ---- moving -----------------------------------------------------------------------------

    def find(self, request: Request, ticket: bytes) -> Mobile:
        """Whose ticket a Refresh brings (RFC 8016, 3.2.2). The one before the newest is good for repeating its Refresh.

        :raises Refused: 405 where there are no tickets, 400 for one that is not good or not needed, 437 when the
            allocation is gone or the five-tuple has another one, 441 when it is another user's.
        """
        if not self._settings.mobility:
            raise Refused(405)
        found = self._tickets.read(ticket)
        if found is None:
            raise Refused(400)
        number, moves = found
        mobile = self._mobiles.get(number)
        if mobile is None or mobile.allocation.expires <= request.now:
            raise Refused(437)
        allocation = mobile.allocation
        if not request.is_owner_of(allocation):
            raise Refused(441)
        if moves == (mobile.moves - 1) & MOVES and mobile.answer_again(request) is not None:
            return mobile
        if moves != mobile.moves & MOVES or request.allocation is allocation:
            raise Refused(400)
        if request.allocation is not None:
            raise Refused(437)
        return mobile

    def resume(self, mobile: Mobile, request: Request, answer: Attributes) -> Attributes:
        """Take the five-tuple of *request* for the allocation's second one; gives the answer with the new ticket.

        A second five-tuple that was there before is given up, so that there are never more than two.
        """
        self._allocations.expect(mobile.allocation, request.link, request.client)
        mobile.moves += 1
        answer = [*answer, (stun.MOBILITY_TICKET, self._tickets.write(mobile.number, mobile.moves))]
        mobile.last = Resumption(request.link, request.client, request.message.transaction_id, answer, request.now)
        return answer

    def seen(self, allocation: Allocation, link: Link, client: Address, packets: Burst) -> None:
        """*packets* have come for an allocation with two five-tuples: data on the second one settles it there."""
        if allocation.second == (link, client) and any(map(_is_data, packets)):
            self._allocations.move(allocation)

    def disconnected(self, allocation: Allocation, link: Link, client: Address) -> bool:
        """The client's stream is gone; whether the allocation outlives it."""
        if allocation.second == (link, client):
            self._allocations.forget_second(allocation)
        elif allocation.second is not None:
            self._allocations.move(allocation)
        elif allocation in self._numbers:
            self._allocations.expect(allocation, NoLink(self._drops), client)
            self._allocations.move(allocation)
        else:
            return False
        return True

    def _ended(self, allocation: Allocation) -> None:
        number = self._numbers.pop(allocation, None)
        if number is not None:
            del self._mobiles[number]


def _is_data(packet: Buffer) -> bool:
    """Whether *packet* is ChannelData or a Send indication."""
    return len(packet) > 1 and (packet[0] >= _FIRST_CHANNEL_BYTE or packet[:2] == _SEND_INDICATION)
