"""The long-term credential mechanism (RFC 8489, 9.2) over time-limited credentials: who sent this request?

Nothing is kept about who fails. The expiry in a user name is looked at when an allocation is made and
at no other time, so that a call outlives the credentials that it began with.
"""

from __future__ import annotations

from orama.net.fabric import Address
from orama.turn.credentials import CredentialError, parse_username, password
from orama.turn.nonce import Nonces
from orama.turn.request import Attributes, Identity, Refused
from orama.turn.tenants import Tenants
from orama.wire import stun
from orama.wire.stun import Message, Method


class Authenticator:
    """Knows every tenant's secrets.

    :param default_namespace: whose a user name without a namespace is; empty refuses them.
    """

    def __init__(self, tenants: Tenants, nonces: Nonces, realm: str, default_namespace: str) -> None:
        self._tenants = tenants
        self._nonces = nonces
        self._realm = realm
        self._default_namespace = default_namespace

    def challenge(self, client: Address, now: float) -> Attributes:
        """The attributes that ask *client* for credentials."""
        return [(stun.REALM, self._realm), (stun.NONCE, self._nonces.issue(client, now))]

    def identify(self, request: Message, client: Address, now: float, held: bytes = b"") -> Identity:
        """Check a request, in the order of RFC 8489, 9.2.4.

        :param held: the key of the allocation that *client* has. It stays good for that one when the secret that made
            it is no longer the tenant's, so that another secret ends no call.
        :raises Refused: 401, 400 or 438.
        """
        if not request.protected:
            raise Refused(401, challenge=True)
        name, realm, nonce = request.get(stun.USERNAME), request.get(stun.REALM), request.get(stun.NONCE)
        if name is None or realm is None or nonce is None:
            raise Refused(400)
        if not self._nonces.good(nonce, client, now):
            raise Refused(438, challenge=True)
        try:
            username = parse_username(name, self._default_namespace)
        except CredentialError:
            raise Refused(401, challenge=True) from None
        tenant = self._tenants.get(username.namespace)
        if tenant is None or realm != self._realm:
            raise Refused(401, challenge=True)
        if request.method == Method.ALLOCATE and not username.current(now):
            raise Refused(401, challenge=True)
        for secret in tenant.secrets:
            key = stun.long_term_key(name, realm, password(secret, name))
            if request.verify(key):
                return Identity(username, tenant, key)
        if held and request.method != Method.ALLOCATE and request.verify(held):
            return Identity(username, tenant, held)
        raise Refused(401, challenge=True)
