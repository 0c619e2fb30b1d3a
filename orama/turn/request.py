"""A proven request, what its method gives back, and how it is refused: what the methods of TURN have in common.

A method is a callable that takes a :class:`Request` and gives the attributes of its success response,
now or later, or raises :class:`Refused`. It signs nothing and sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from attrs import field, frozen
from twisted.internet.defer import Deferred

from orama.net.fabric import Address
from orama.turn.allocation import Allocation
from orama.turn.credentials import Username
from orama.turn.relay import Link
from orama.turn.tenants import Tenant
from orama.wire.stun import Attribute, Message

#: Attributes of a message with their values, in the order in which they are written.
Attributes: TypeAlias = list[tuple[Attribute[Any], Any]]


@frozen
class Identity:
    """Who sent a request, proven."""

    username: Username
    tenant: Tenant
    #: Signs the answer.
    key: bytes = field(repr=False)
    #: With MESSAGE-INTEGRITY-SHA256: the request named an algorithm (RFC 8489, 9.2.4), or has no other integrity.
    sha256: bool = False


class Refused(Exception):
    """The request gets an error response with this code.

    :param challenge: whether realm and nonce go with it.
    :param attributes: what else does.
    """

    def __init__(
        self, code: int, *, challenge: bool = False, attributes: Sequence[tuple[Attribute[Any], Any]] = ()
    ) -> None:
        super().__init__(code)
        self.code = code
        self.challenge = challenge
        self.attributes = attributes


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
    #: The client's address cannot be forged: it is on a stream.
    verified: bool = False

    def own(self) -> Allocation:
        """The five-tuple's allocation, when it is the sender's (RFC 8656, 5).

        :raises Refused: 437 when there is none, 441 when it is another user's.
        """
        allocation = self.allocation
        if allocation is None:
            raise Refused(437)
        if not self.is_owner_of(allocation):
            raise Refused(441)
        return allocation

    def is_owner_of(self, allocation: Allocation) -> bool:
        """Whether *allocation* is the sender's, with whichever credentials."""
        identity = self.identity
        return allocation.tenant.namespace == identity.tenant.namespace and allocation.user == identity.username.user


#: What a method does with a request: a Deferred answers when it fires, and its failure may be a Refused.
MethodOf: TypeAlias = Callable[[Request], "Attributes | Deferred[Attributes]"]
