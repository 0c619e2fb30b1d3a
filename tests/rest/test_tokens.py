"""JSON Web Tokens: which are good, which are not, and which keys decide."""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import jwt
from attrs import evolve
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.errors import BadRequest, ConfigurationError, NotAuthenticated
from orama.rest.tokens import LEEWAY, Claims, Tokens, new_key
from orama.settings import AuthSettings

NOW = 1_800_000_000
RSA = rsa.generate_private_key(65537, 2048)
WEAK_RSA = rsa.generate_private_key(65537, 1024)
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
ED = ed25519.Ed25519PrivateKey.generate()
GOOD = {"sub": "anna", "namespace": "tenant", "exp": NOW + 60}


def public_pem(key: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))


class TokensTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.own = new_key()
        files = [self.file(name, public_pem(key)) for name, key in (("ed", ED), ("ec", P256), ("rsa", RSA))]
        self.tokens = Tokens(AuthSettings(jwt_keys=tuple(files)), self.own, self.clock)

    def file(self, name: str, content: bytes) -> str:
        path = Path(self.mktemp())
        path.mkdir()
        (path / name).write_bytes(content)
        return str(path / name)

    def refused(self, token: str) -> str:
        with self.assertRaises(NotAuthenticated) as caught:
            self.tokens.verify(token)
        self.assertEqual(caught.exception.code, "invalid_token")
        return caught.exception.message

    def test_algorithms(self) -> None:
        """EdDSA, ES256 and RS256 with a configured key."""
        for key, algorithm in ((ED, "EdDSA"), (P256, "ES256"), (RSA, "RS256")):
            claims = self.tokens.verify(jwt.encode(GOOD, key, algorithm=algorithm))
            self.assertEqual(claims, Claims("anna", "tenant", NOW + 60))

    def test_other_algorithms(self) -> None:
        """``none``, HMAC (also with a public key for its secret) and everything else is refused."""
        self.refused(jwt.encode(GOOD, None, algorithm="none"))
        self.refused(jwt.encode(GOOD, "x" * 32, algorithm="HS256"))
        for algorithm in ("RS384", "RS512", "PS256"):
            self.refused(jwt.encode(GOOD, RSA, algorithm=algorithm))
        self.refused(jwt.encode(GOOD, P384, algorithm="ES384"))

        def part(value: Any) -> str:
            return (
                urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode())
                .decode()
                .rstrip("=")
            )

        for key in (ED, P256, RSA):
            signed = part({"alg": "HS256", "typ": "JWT"}) + "." + part(GOOD)
            forged = signed + "." + part(hmac.digest(public_pem(key), signed.encode(), "sha256"))
            self.refused(forged)
        for algorithm in ("none", "None", "NONE", "", None, 5):
            self.refused(part({"alg": algorithm}) + "." + part(GOOD) + ".")

    def test_other_key(self) -> None:
        """A token that nobody we know has signed, or that was changed afterwards."""
        self.refused(jwt.encode(GOOD, ed25519.Ed25519PrivateKey.generate(), algorithm="EdDSA"))
        head, payload, signature = jwt.encode(GOOD, ED, algorithm="EdDSA").split(".")
        other = jwt.encode({**GOOD, "role": "owner"}, ED, algorithm="EdDSA").split(".")[1]
        self.assertNotEqual(payload, other)
        self.refused(f"{head}.{other}.{signature}")

    def test_times(self) -> None:
        """``exp`` is needed and held to, ``nbf`` too, within a few seconds of leeway for the latter."""
        self.tokens.verify(self.signed(exp=NOW + 1))
        self.assertIn("expired", self.refused(self.signed(exp=NOW)))
        self.tokens.verify(self.signed(nbf=NOW + LEEWAY))
        self.assertIn("not good yet", self.refused(self.signed(nbf=NOW + LEEWAY + 1)))
        for wrong in (None, "soon", True, [], 1e300, -1e300):
            self.refused(self.signed(exp=wrong))
        self.tokens.verify(self.signed(exp=NOW + 0.5))

    def test_needed_claims(self) -> None:
        """Without ``sub``, ``namespace`` or ``exp``, or with something else in their place, it is refused."""
        for name in GOOD:
            self.refused(jwt.encode({k: v for k, v in GOOD.items() if k != name}, ED, algorithm="EdDSA"))
        for name in ("sub", "namespace"):
            for wrong in ("", None, 5, ["a"], {"a": 1}):
                self.refused(self.signed(**{name: wrong}))
        self.refused(self.signed(sub="x" * 257))

    def test_optional_claims(self) -> None:
        """Role, rooms and permissions come through; wrong ones are refused and not ignored."""
        claims = self.tokens.verify(self.signed(role="owner", rooms=["a", "b:c"], permissions=["publish"]))
        expected = Claims("anna", "tenant", NOW + 60, "owner", frozenset({"a", "b:c"}), frozenset({"publish"}))
        self.assertEqual(claims, expected)
        self.assertEqual(self.tokens.verify(self.signed(rooms=[])).rooms, frozenset())
        for wrong in (
            {"role": "king"},
            {"role": 5},
            {"role": None},
            {"rooms": "a"},
            {"rooms": ["a b"]},
            {"rooms": [5]},
        ):
            self.refused(self.signed(**wrong))
        self.refused(self.signed(permissions="publish"))

    def test_audience(self) -> None:
        """A token for a certain audience is not for us (RFC 7519, 4.1.3)."""
        self.refused(self.signed(aud="somebody else"))

    def test_texts_tell_nothing(self) -> None:
        """No refusal repeats any of the token."""
        for token in (self.signed(role="kingofall"), self.signed(exp=NOW - 100), "eyJhbGciOiJub25lIn0.e30."):
            message = self.refused(token)
            for part in ("kingofall", *token.split(".")[:2]):
                self.assertNotIn(part, message)

    def test_long(self) -> None:
        """A token over the limit is not even read."""
        self.assertIn("too long", self.refused("x" * 16385))

    @settings(deadline=None)
    @given(st.one_of(st.text(), st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*")))
    def test_total(self, token: str) -> None:
        """Any text is refused in the same way."""
        tokens = Tokens(AuthSettings(), self.own, self.clock)
        with self.assertRaises(NotAuthenticated):
            tokens.verify(token)

    @settings(deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
        st.sampled_from(["sub", "namespace", "exp", "nbf", "iat", "role", "rooms", "permissions", "aud", "iss", "jti"]),
    )
    def test_total_claims(self, value: Any, name: str) -> None:
        """Any value in a claim of a signed token gives claims or a refusal."""
        try:
            claims = self.tokens.verify(self.signed(**{name: value}))
        except NotAuthenticated:
            return
        self.assertIsInstance(claims, Claims)

    def test_issue(self) -> None:
        """What the node issues it takes, until the ttl has passed."""
        token = self.tokens.issue(
            "tenant", "anna", ttl=60, role="owner", rooms=["b", "a"], permissions=["data", "publish"]
        )
        claims = self.tokens.verify(token)
        expected = Claims("anna", "tenant", NOW + 60, "owner", frozenset({"a", "b"}), frozenset({"data", "publish"}))
        self.assertEqual(claims, expected)
        self.clock.advance(60)
        self.refused(token)

    def test_issue_of_another_node(self) -> None:
        """Another node's token is not good here."""
        self.refused(Tokens(AuthSettings(), new_key(), self.clock).issue("tenant", "anna", ttl=60))

    def test_issue_nonsense(self) -> None:
        """What could not be used is not issued."""
        for wrong in (
            {"ttl": 0},
            {"ttl": -5},
            {"ttl": 86401},
            {"sub": ""},
            {"namespace": ""},
            {"role": "king"},
            {"rooms": ["a b"]},
        ):
            arguments: dict[str, Any] = {"namespace": "tenant", "sub": "anna", "ttl": 60, **wrong}
            with self.assertRaises(BadRequest):
                self.tokens.issue(arguments.pop("namespace"), arguments.pop("sub"), **arguments)

    def test_jwks(self) -> None:
        """Keys of a JWK Set by their id; keys of other kinds in it are passed over."""
        entries = []
        for kid, key in (("one", P256), ("two", RSA), ("three", P384)):
            entry = json.loads(jwt.get_algorithm_by_name("RS256" if key is RSA else "ES256").to_jwk(key.public_key()))
            entries.append({**entry, "kid": kid, "use": "sig"})
        entries += [{"kty": "oct", "k": "c2VjcmV0", "kid": "four"}, {"kty": "OKP", "crv": "X25519", "x": "AA"}]
        entries.append({**entries[0], "kid": "five", "use": "enc"})
        settings = AuthSettings(jwks_file=self.file("jwks", json.dumps({"keys": entries}).encode()))
        self.tokens.reload(settings)
        self.tokens.verify(jwt.encode(GOOD, P256, algorithm="ES256", headers={"kid": "one"}))
        self.tokens.verify(jwt.encode(GOOD, RSA, algorithm="RS256", headers={"kid": "two"}))
        self.tokens.verify(jwt.encode(GOOD, RSA, algorithm="RS256"))
        self.refused(jwt.encode(GOOD, P384, algorithm="ES384", headers={"kid": "three"}))
        self.refused(jwt.encode(GOOD, b"secret" * 8, algorithm="HS256", headers={"kid": "four"}))
        self.refused(jwt.encode(GOOD, ED, algorithm="EdDSA"))

    def test_reload(self) -> None:
        """Keys that are replaced count at once; a file that cannot be read changes nothing."""
        token = jwt.encode(GOOD, ED, algorithm="EdDSA")
        self.tokens.verify(token)
        with self.assertRaises(ConfigurationError):
            self.tokens.reload(AuthSettings(jwt_keys=("/nonexistent.pem",)))
        self.tokens.verify(token)
        self.tokens.reload(AuthSettings())
        self.refused(token)

    def test_bad_files(self) -> None:
        """A key that cannot be used is named on one line, with what is wrong."""
        for content, text in (
            (b"", "not a public key"),
            (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public key"),
            (public_pem(P384), "P-256"),
            (public_pem(WEAK_RSA), "2048"),
        ):
            name = self.file("key.pem", content)
            with self.assertRaises(ConfigurationError) as caught:
                Tokens(AuthSettings(jwt_keys=(name,)), self.own, self.clock)
            self.assertIn(name, caught.exception.message)
            self.assertIn(text, caught.exception.message)
        for content in (b"", b"[]", b"{}", b'{"keys": 5}', b'{"keys": [5]}', b'{"keys": []}', b"\xff"):
            name = self.file("jwks", content)
            with self.assertRaises(ConfigurationError) as caught:
                Tokens(AuthSettings(jwks_file=name), self.own, self.clock)
            self.assertIn(name, caught.exception.message)

    def test_longer_life(self) -> None:
        """The longest life of an issued token is a setting, and changes with it."""
        settings = evolve(AuthSettings(), max_token_ttl=10)
        self.tokens.reload(settings)
        with self.assertRaises(BadRequest):
            self.tokens.issue("tenant", "anna", ttl=11)

    def signed(self, **claims: Any) -> str:
        payload = json.dumps({**GOOD, **claims}).encode()
        return jwt.PyJWS().encode(payload, ED, algorithm="EdDSA", headers={"typ": "JWT"})
