"""Places in rooms and the tokens that give them back: what ``resume`` in a ``join`` is good for.

A seat is taken when somebody joins and given up when the peer leaves. Its token is bound to namespace, room, user and
rights, works once, and is replaced in the next ``welcome``. A seat whose socket is gone can be taken again for the
time that the SFU keeps its media.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from attrs import define, field

from orama.signaling.interfaces import Peer, Visitor

if TYPE_CHECKING:
    from orama.signaling.session import Session


@define(eq=False)
class Seat:
    """One peer's place. *session* is None while no socket holds it, since *vacated*."""

    namespace: str
    room_id: str
    user_id: str
    #: The rights that it was taken with: role and permissions.
    rights: tuple[str, frozenset[str]]
    peer: Peer
    session: Session | None
    token: str = field(default="", repr=False)
    vacated: float = 0.0


def rights_of(visitor: Visitor) -> tuple[str, frozenset[str]]:
    return visitor.role, visitor.permissions


class Seats:
    """All seats of this node.

    :param timeout: seconds that a vacated seat can be taken again.
    :param new_token: makes an unguessable text.
    """

    def __init__(self, timeout: float, new_token: Callable[[], str]) -> None:
        self._timeout = timeout
        self._new_token = new_token
        self._by_token: dict[str, Seat] = {}

    def __len__(self) -> int:
        return len(self._by_token)

    def __iter__(self) -> Iterator[Seat]:
        return iter(tuple(self._by_token.values()))

    def stamp(self, seat: Seat) -> str:
        """Give *seat* a new token; the one before is worth nothing from now on."""
        self._by_token.pop(seat.token, None)
        seat.token = self._new_token()
        self._by_token[seat.token] = seat
        return seat.token

    def find(self, token: str, visitor: Visitor, room_id: str, user_id: str | None, now: float) -> Seat | None:
        """The seat of *token*, when it may be taken by this visitor, in this room, now. None as user id is any."""
        seat = self._by_token.get(token)
        if (
            seat is None
            or (seat.namespace, seat.room_id) != (visitor.namespace, room_id)
            or seat.rights != rights_of(visitor)
            or (user_id is not None and seat.user_id != user_id)
            or self._expired(seat, now)
        ):
            return None
        return seat

    def vacate(self, seat: Seat, now: float) -> None:
        """The socket is gone, the peer stays for a while."""
        seat.session = None
        seat.vacated = now

    def give_up(self, seat: Seat) -> None:
        """The peer is gone."""
        seat.session = None
        self._by_token.pop(seat.token, None)

    def expire(self, now: float) -> None:
        """Forget the seats that nobody can take again; the SFU lets their peers go by itself."""
        for seat in self:
            if self._expired(seat, now):
                self.give_up(seat)

    def _expired(self, seat: Seat, now: float) -> bool:
        return seat.session is None and (seat.peer.left or now - seat.vacated >= self._timeout)
