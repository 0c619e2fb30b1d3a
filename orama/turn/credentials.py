"""Time-limited TURN credentials: the "REST API" form that coturn's ``use-auth-secret`` takes too.

The user name is ``{expiry}:{namespace}``, ``{expiry}:{namespace}:{user}``, or the expiry alone for the
default namespace; the password is base64 of HMAC-SHA1 over it, keyed with the *text* of the secret.
Checking a message with them is ``server``'s; storing secrets is not done here.
"""

from __future__ import annotations

import base64
import hmac
import re

from attrs import field, frozen

#: A decimal number as a machine writes it: no sign, no space, no leading zero, ASCII digits.
_EXPIRY = re.compile(r"0|[1-9][0-9]{0,14}", re.ASCII)


class CredentialError(ValueError):
    """A user name that is none of ours."""


@frozen
class Username:
    """What a user name says."""

    #: Unix time up to which an allocation may be made.
    expiry: int
    namespace: str
    #: Empty when the name has no third part.
    user: str = ""

    def current(self, now: float) -> bool:
        """Whether an allocation may be made with it now."""
        return now < self.expiry


@frozen
class Credentials:
    """What a client gets: ``ttl`` in seconds."""

    username: str
    password: str = field(repr=False)
    ttl: int


def password(secret: str, username: str) -> str:
    """The password that belongs to *username* under *secret*."""
    return base64.b64encode(hmac.digest(secret.encode(), username.encode(), "sha1")).decode("ascii")


def issue(secret: str, namespace: str, ttl: int, now: float, user: str = "") -> Credentials:
    """Credentials of *namespace*, good for making allocations until *now* + *ttl*."""
    username = f"{int(now) + ttl}:{namespace}" + (f":{user}" if user else "")
    return Credentials(username=username, password=password(secret, username), ttl=ttl)


def parse_username(username: str, default_namespace: str = "") -> Username:
    """Take a user name apart.

    :param default_namespace: whose an expiry alone is; empty refuses that form.
    :raises CredentialError: the expiry is not canonical, or there is no namespace.
    """
    expiry, colon, rest = username.partition(":")
    if _EXPIRY.fullmatch(expiry) is None:
        raise CredentialError("the expiry is not a plain decimal number")
    namespace, _, user = rest.partition(":") if colon else (default_namespace, "", "")
    if not namespace:
        raise CredentialError("no namespace")
    return Username(expiry=int(expiry), namespace=namespace, user=user)


def uris(host: str, port: int, tls_port: int) -> list[str]:
    """The three URIs of a server (RFC 7065), in the order in which clients should try them."""
    if ":" in host:
        host = f"[{host}]"
    return [f"turn:{host}:{port}?transport=udp", f"turn:{host}:{port}?transport=tcp", f"turns:{host}:{tls_port}"]
