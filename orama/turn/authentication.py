"""The long-term credential mechanism (RFC 8489, 9.2) over time-limited credentials: who sent this request?

Nothing is kept about who fails. The expiry in a user name is looked at when an allocation is made and
at no other time, so that a call outlives the credentials that it began with.

Keys of SHA-256 are offered (PASSWORD-ALGORITHMS), and so is the hiding of user names where the process
knows them all. The offer makes a challenge 28 bytes longer. A challenge over UDP may go to somebody whose
address was forged, so there the offer is made only in answer to a request that is long enough; a client that
wants it makes its first request longer, as SOFTWARE does. On a stream it is always made.

User names, realms and passwords of ours are ASCII, which OpaqueString (RFC 8265) leaves as it is; one of somebody
else who has the secret has to come prepared, as 14.3 asks of clients, and is hashed as it comes.
"""

from __future__ import annotations

from orama.net.fabric import Address
from orama.turn.credentials import CredentialError, Username, parse_username, password
from orama.turn.names import Names
from orama.turn.nonce import Feature, Nonces, features
from orama.turn.request import Attributes, Identity, Refused
from orama.turn.tenants import Tenant, Tenants
from orama.wire import stun
from orama.wire.stun import Algorithm, Message, Method, PasswordAlgorithm

#: What is offered, the better one first (RFC 8489, 14.11).
ALGORITHMS: tuple[Algorithm, ...] = ((PasswordAlgorithm.SHA256, b""), (PasswordAlgorithm.MD5, b""))
#: Of an error response with the whole challenge, without the realm: header, ERROR-CODE, the header of REALM, NONCE,
#: PASSWORD-ALGORITHMS.
_CHALLENGE_LENGTH = 20 + 8 + 4 + 28 + 12


class Authenticator:
    """Knows every tenant's secrets.

    :param default_namespace: whose a user name without a namespace is; empty refuses them.
    :param names: what a USERHASH is looked up in.
    :param amplification: a challenge over UDP makes its offer when that is fewer than so many times the bytes that
        the request has.
    :param remembered: seconds for which a name that authenticated is known by its hash; an allocation that is refreshed
        within them goes on for longer than its credentials.
    """

    def __init__(
        self,
        tenants: Tenants,
        nonces: Nonces,
        realm: str,
        default_namespace: str,
        names: Names,
        amplification: float = 2.0,
        remembered: float = 3600.0,
    ) -> None:
        self._tenants = tenants
        self._nonces = nonces
        self._realm = realm
        self._default_namespace = default_namespace
        self._names = names
        self._remembered = remembered
        octets = len(realm.encode())
        self._longest = (_CHALLENGE_LENGTH + octets + -octets % 4) / amplification

    def challenge(self, request: Message, client: Address, now: float, *, verified: bool = False) -> Attributes:
        """The attributes that ask *client* for credentials, with the offer where it has room.

        :param verified: the client's address cannot be forged.
        """
        if not verified and len(request.raw) <= self._longest:
            return [(stun.REALM, self._realm), (stun.NONCE, self._nonces.issue(client, now))]
        offered = Feature.PASSWORD_ALGORITHMS
        if self._names.complete(now):
            offered |= Feature.USERNAME_ANONYMITY
        return [
            (stun.REALM, self._realm),
            (stun.NONCE, self._nonces.issue(client, now, offered)),
            (stun.PASSWORD_ALGORITHMS, ALGORITHMS),
        ]

    def identify(
        self,
        request: Message,
        client: Address,
        now: float,
        held: tuple[bytes, Address, Address | None] | None = None,
        *,
        verified: bool = False,
    ) -> Identity:
        """Check a request, in the order of RFC 8489, 9.2.4.

        :param held: key and client of the allocation that the request is about, and where it was before it moved. The
            key stays good for that one when the secret that made it is no longer the tenant's, so that another secret
            ends no call. So does a nonce of that client's, who may speak about it from another stream (RFC 6062, 4.3),
            or once more after moving there, and not try twice. Over UDP it does not: a client that moves (RFC 8016,
            3.2) has to show that it can read at the new address, or it would have peers send to somebody else's.
        :param verified: the client's address cannot be forged.
        :raises Refused: 401, 400 or 438.
        """
        if not request.protected:
            raise Refused(401, challenge=True)
        realm, nonce = request.get(stun.REALM), request.get(stun.NONCE)
        named = stun.USERNAME in request or stun.USERHASH in request
        if not named or realm is None or nonce is None:
            raise Refused(400)
        offered = features(nonce)
        chosen = self._chosen(request, offered)
        name, username, tenant = self._user(request, realm, now)
        identity = self._prove(request, name, username, tenant, chosen, b"" if held is None else held[0])
        if identity is None:
            raise Refused(401, challenge=True)
        addresses = [client, *filter(None, held[1:])] if verified and held is not None else [client]
        good = any(self._nonces.good(nonce, address, now) for address in addresses)
        if not good or (verified and offered is None):
            raise Refused(438, challenge=True)
        if request.method == Method.ALLOCATE or stun.USERHASH in request:
            self._names.learn(name, now + self._remembered)
        return identity

    def _chosen(self, request: Message, offered: Feature | None) -> PasswordAlgorithm | None:
        """The algorithm that a request names, None when it names none and has the key of MD5.

        :raises Refused: 400: it names one, but not as it was offered (9.2.1).
        """
        if offered is None or Feature.PASSWORD_ALGORITHMS not in offered:
            return None
        rows = (stun.PASSWORD_ALGORITHMS, stun.PASSWORD_ALGORITHM)
        if not any(row in request or row.type in request.malformed for row in rows):
            return None
        algorithm = request.get(stun.PASSWORD_ALGORITHM)
        if request.get(stun.PASSWORD_ALGORITHMS) != ALGORITHMS or algorithm not in ALGORITHMS:
            raise Refused(400)
        return PasswordAlgorithm(algorithm[0])

    def _user(self, request: Message, realm: str, now: float) -> tuple[str, Username, Tenant]:
        """The user name, taken apart, and the tenant.

        :raises Refused: 401: nobody is called that, or not any more.
        """
        name = request.get(stun.USERNAME)
        if name is None:
            name = self._names.find(request.get(stun.USERHASH) or b"")
        if name is not None and realm == self._realm:
            try:
                username = parse_username(name, self._default_namespace)
            except CredentialError:
                raise Refused(401, challenge=True) from None
            tenant = self._tenants.get(username.namespace)
            if tenant is not None and (request.method != Method.ALLOCATE or username.current(now)):
                return name, username, tenant
        raise Refused(401, challenge=True)

    def _prove(
        self,
        request: Message,
        name: str,
        username: Username,
        tenant: Tenant,
        chosen: PasswordAlgorithm | None,
        held: bytes,
    ) -> Identity | None:
        """The sender when one of the keys made the integrity of the request."""
        sha256 = chosen is not None or stun.MESSAGE_INTEGRITY not in request
        for secret in tenant.secrets:
            key = stun.long_term_key(name, self._realm, password(secret, name), chosen or PasswordAlgorithm.MD5)
            if request.verify(key):
                return Identity(username, tenant, key, sha256)
        if held and request.method != Method.ALLOCATE and request.verify(held):
            return Identity(username, tenant, held, sha256)
        return None
