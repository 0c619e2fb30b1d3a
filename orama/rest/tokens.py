"""JSON Web Tokens (RFC 7519): checked against configured keys, a JWKS file and the node's own key.

EdDSA, ES256 and RS256 only. Which algorithm a token may use follows from the key, never from the
token's header (RFC 8725, 3.1). Times are checked against the clock that was passed in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jwt
from attrs import frozen
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.errors import BadRequest, ConfigurationError, NotAuthenticated
from orama.settings import AuthSettings

ROLES = frozenset({"owner", "member"})
#: Room ids of the contract, section 3.
ROOM_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}\Z")
#: Longest token looked at; a token with a hundred room ids is far below.
MAX_TOKEN = 16384
#: Longest user id.
MAX_SUB = 256
#: Seconds by which the clock of whoever issues tokens may be ahead. An expiry is meant as it stands.
LEEWAY = 10
#: Smallest RSA modulus (RFC 7518, 3.3).
MIN_RSA_BITS = 2048

_PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_log = Logger()


@frozen
class Claims:
    """What a good token says. None where it says nothing."""

    sub: str
    namespace: str
    expires: float
    role: str = "member"
    rooms: frozenset[str] | None = None
    permissions: frozenset[str] | None = None


@frozen
class _Key:
    algorithm: str
    public: _PublicKey
    kid: str | None = None


class Tokens:
    """Verifies tokens, and issues them with the node's own key.

    :param own: the node's Ed25519 private key (PEM).
    :raises ConfigurationError: a configured key cannot be used; the message names its file.
    """

    def __init__(self, settings: AuthSettings, own: bytes, clock: IReactorTime) -> None:
        self._settings = settings
        self._clock = clock
        private = serialization.load_pem_private_key(own, None)
        if not isinstance(private, ed25519.Ed25519PrivateKey):
            raise ConfigurationError("the node's token key is not an Ed25519 key")
        self._private = private
        self._own = _Key("EdDSA", private.public_key(), "node")
        self._configured = _load(settings)

    def reload(self, settings: AuthSettings | None = None) -> None:
        """Read the configured keys again; those in use stay when one cannot be read.

        :raises ConfigurationError: as at the start.
        """
        settings = settings or self._settings
        self._configured = _load(settings)
        self._settings = settings

    def verify(self, token: str) -> Claims:
        """The claims of *token*.

        :raises NotAuthenticated: ``invalid_token``; the text says what is wrong with it, not what it is.
        """
        if len(token) > MAX_TOKEN:
            raise _invalid("it is too long")
        return self._claims(self._payload(token))

    def issue(
        self,
        namespace: str,
        sub: str,
        *,
        ttl: int,
        role: str = "member",
        rooms: Iterable[str] | None = None,
        permissions: Iterable[str] | None = None,
    ) -> str:
        """A token of the node itself, good for *ttl* seconds.

        :raises BadRequest: a claim that :meth:`verify` would refuse, or a longer life than is allowed.
        """
        if not 0 < ttl <= self._settings.max_token_ttl:
            raise BadRequest("invalid_request", f"ttl is 1 to {self._settings.max_token_ttl} seconds")
        now = int(self._clock.seconds())
        payload: dict[str, Any] = {"sub": sub, "namespace": namespace, "iat": now, "exp": now + ttl}
        payload["role"] = role
        if rooms is not None:
            payload["rooms"] = sorted(rooms)
        if permissions is not None:
            payload["permissions"] = sorted(permissions)
        try:
            self._claims(payload)
        except NotAuthenticated as error:
            raise BadRequest("invalid_request", error.message) from None
        return jwt.encode(payload, self._private, algorithm="EdDSA", headers={"kid": self._own.kid})

    def _payload(self, token: str) -> dict[str, Any]:
        """What *token* holds, once a key of ours has signed it."""
        try:
            stated = jwt.get_unverified_header(token)
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            raise _invalid("it is not a JSON Web Token") from None
        keys = [key for key in (self._own, *self._configured) if key.algorithm == stated.get("alg")]
        named = [key for key in keys if key.kid is not None and key.kid == stated.get("kid")]
        for key in named or keys:
            try:
                return jwt.decode(
                    token,
                    key.public,
                    algorithms=[key.algorithm],
                    options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
                )
            except jwt.InvalidSignatureError:
                continue
            except (jwt.InvalidTokenError, ValueError, RecursionError):
                raise _invalid("its claims cannot be used") from None
        raise _invalid("no key of ours has signed it")

    def _claims(self, payload: dict[str, Any]) -> Claims:
        now = self._clock.seconds()
        expires = _time(payload, "exp")
        if expires is None:
            raise _invalid("it has no exp")
        if expires <= now:
            raise _invalid("it has expired")
        if (_time(payload, "nbf") or 0.0) - LEEWAY > now:
            raise _invalid("it is not good yet")
        sub, namespace, role = payload.get("sub"), payload.get("namespace"), payload.get("role", "member")
        if not isinstance(sub, str) or not 0 < len(sub) <= MAX_SUB:
            raise _invalid("sub must be a text")
        if not isinstance(namespace, str) or not namespace:
            raise _invalid("namespace must be a text")
        if not isinstance(role, str) or role not in ROLES:
            raise _invalid("role is owner or member")
        rooms = _texts(payload, "rooms")
        if rooms is not None and not all(ROOM_ID.match(room) for room in rooms):
            raise _invalid("rooms must be room ids")
        return Claims(sub, namespace, expires, role, rooms, _texts(payload, "permissions"))


def new_key() -> bytes:
    """A fresh Ed25519 private key as PEM."""
    return ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _invalid(why: str) -> NotAuthenticated:
    return NotAuthenticated("invalid_token", f"the token is not valid: {why}")


def _time(payload: dict[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519, 2), None when it is absent."""
    value = payload.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise _invalid(f"{name} must be a time")
    return float(value)


def _texts(payload: dict[str, Any], name: str) -> frozenset[str] | None:
    value = payload.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _invalid(f"{name} must be a list of texts")
    return frozenset(value)


def _load(settings: AuthSettings) -> tuple[_Key, ...]:
    keys: list[_Key] = []
    for name in settings.jwt_keys:
        keys.append(_checked(name, _pem(name), None))
    if settings.jwks_file:
        keys.extend(_jwks(settings.jwks_file))
    return tuple(keys)


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{name}: cannot be read: {error.strerror}") from None


def _pem(name: str) -> Any:
    try:
        return serialization.load_pem_public_key(_read(name))
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{name}: is not a public key in PEM") from None


def _jwks(name: str) -> list[_Key]:
    """The signature keys of a JWK Set (RFC 7517, 5); sets may hold keys of other kinds, which are passed over."""
    try:
        entries = json.loads(_read(name))["keys"]
        candidates = [entry for entry in entries if entry.get("use", "sig") == "sig"]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigurationError(f"{name}: is not a JWK Set") from None
    keys = []
    for entry in candidates:
        try:
            key = jwt.PyJWK(entry)
            keys.append(_checked(name, key.key, entry.get("kid")))
        except (jwt.PyJWTError, ValueError, ConfigurationError) as error:
            _log.warn("a key of {file} is not used: {reason}", file=name, reason=type(error).__name__)
    if not keys:
        raise ConfigurationError(f"{name}: holds no Ed25519, P-256 or RSA key")
    return keys


def _checked(name: str, key: Any, kid: str | None) -> _Key:
    """*key* with the only algorithm that it may be used with."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        return _Key("EdDSA", key, kid)
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return _Key("ES256", key, kid)
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return _Key("RS256", key, kid)
    raise ConfigurationError(f"{name}: a key must be Ed25519, P-256, or RSA of {MIN_RSA_BITS} bits or more")
