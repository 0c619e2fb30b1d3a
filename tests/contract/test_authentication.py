"""Contract, section 2: every way to say who one is, their order, and what a token may and may not be."""

from __future__ import annotations

import atexit
import hmac
import json
import time
from base64 import urlsafe_b64encode
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
from attrs import frozen
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from twisted.trial.unittest import SynchronousTestCase

from tests.contract.rest import Answer, ask
from tests.contract.signalling import Client
from tests.contract.stage import directory, end, started, toml
from tests.node import NodeProcess

ROOMS = "/v1/webrtc/rooms"


@frozen
class Keys:
    """Private keys by algorithm; the node knows the public ones, those of *published* from a JWKS file."""

    private: dict[str, Any]
    published: dict[str, Any]
    folder: Path

    @property
    def config(self) -> str:
        files = json.dumps([str(self.folder / f"{name}.pem") for name in self.private])
        return toml(auth=f'jwt_keys = {files}\njwks_file = "{self.folder}/jwks.json"\n')


def _pem(key: Any) -> bytes:
    public: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public


@cache
def keys() -> Keys:
    def fresh() -> dict[str, Any]:
        return {
            "EdDSA": ed25519.Ed25519PrivateKey.generate(),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "RS256": rsa.generate_private_key(65537, 2048),
        }

    made = Keys(fresh(), fresh(), directory())
    for name, key in made.private.items():
        (made.folder / f"{name}.pem").write_bytes(_pem(key))
    entries = []
    for name, key in made.published.items():
        entry = jwt.get_algorithm_by_name(name).to_jwk(key.public_key(), as_dict=True)
        entries.append({**entry, "kid": f"{name}-1", "use": "sig"})
    (made.folder / "jwks.json").write_text(json.dumps({"keys": entries}))
    return made


@cache
def node() -> NodeProcess:
    made = started(config=keys().config)
    atexit.register(end, made)
    return made


def claims(**more: Any) -> dict[str, Any]:
    return {"sub": "ann", "namespace": "default", "exp": int(time.time()) + 600, **more}


def token(algorithm: str = "EdDSA", key: Any = None, headers: dict[str, Any] | None = None, **more: Any) -> str:
    return jwt.encode(claims(**more), key or keys().private[algorithm], algorithm, headers)


class AuthenticationTestCase(SynchronousTestCase):
    def rooms(self, **headers: str) -> Answer:
        return ask(node(), "GET", ROOMS, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def good(self, answer: Answer) -> None:
        self.assertEqual(answer.status, 200, answer.content)

    def bad(self, answer: Answer, code: str | None = None) -> None:
        """401 with everything that belongs to it, and nothing of what was presented."""
        self.assertEqual(answer.status, 401, answer.content)
        self.assertTrue(answer.headers["WWW-Authenticate"])
        self.assertEqual(answer.headers["Content-Type"], "application/json")
        self.assertEqual(set(answer.json), {"error", "code"})
        if code is not None:
            self.assertEqual(answer.code, code)


class HeaderTests(AuthenticationTestCase):
    def test_forms(self) -> None:
        """The three headers; the scheme in whatever case."""
        key = node().key
        self.good(self.rooms(X_API_Key=key))
        self.good(self.rooms(Authorization=f"ApiKey {key}"))
        self.good(self.rooms(Authorization=f"apikey {key}"))
        self.good(self.rooms(Authorization=f"Bearer {token()}"))
        self.good(self.rooms(Authorization=f"bearer {token()}"))

    def test_order(self) -> None:
        """X-API-Key decides before Authorization is looked at, both ways."""
        self.bad(self.rooms(X_API_Key="ak_wrong:default", Authorization=f"Bearer {token()}"), "invalid_api_key")
        self.good(self.rooms(X_API_Key=node().key, Authorization="Bearer nonsense"))

    def test_nothing_falls_through(self) -> None:
        """What is wrong is an error, whatever good thing comes after it."""
        self.bad(self.rooms(X_API_Key="", Authorization=f"Bearer {token()}"))
        self.bad(self.rooms(Authorization="Basic YTpi"))
        self.bad(self.rooms(Authorization=f"Bearer {node().key}"), "invalid_token")
        self.bad(self.rooms(Authorization=f"ApiKey {token()}"), "invalid_api_key")
        self.bad(ask(node(), "GET", f"{ROOMS}?api_key={node().key}", headers={"Authorization": "Bearer x.y.z"}))

    def test_nothing(self) -> None:
        """Nobody in particular is 401; the query's forms are the WebSocket's alone."""
        self.bad(self.rooms())
        self.bad(ask(node(), "GET", f"{ROOMS}?api_key={node().key}", headers={}))
        self.bad(ask(node(), "GET", f"{ROOMS}?token={token()}", headers={}))

    def test_wrong_keys(self) -> None:
        """A key is good whole and in its own namespace, and no error shows what was presented."""
        key = node().key
        for wrong in (
            key[:-1],
            key + "x",
            key.replace(":default", ":other"),
            key.partition(":")[0],
            "ak_:default",
            "é",
        ):
            answer = self.rooms(X_API_Key=wrong.encode().decode("latin-1"))
            self.bad(answer)
            self.assertNotIn(key[3:12], answer.content.decode())

    def test_form_of_keys(self) -> None:
        """ak_{random}:{namespace}; only a hash of it is stored."""
        key = node().key
        self.assertRegex(key, r"^ak_[A-Za-z0-9_-]{20,}:default$")
        stored = b"".join(file.read_bytes() for file in node().data.glob("orama.db*"))
        self.assertNotIn(key.partition(":")[0].encode(), stored)


class SocketTests(AuthenticationTestCase):
    def verdict(self, query: str = "", subprotocols: list[str] | None = None, **headers: str) -> str | int:
        """``welcome``, or the closing code; and no other subprotocol than ours is chosen."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        client = Client(node(), f"?room=who{query}", headers=given, subprotocols=subprotocols)
        self.addCleanup(client.close)
        self.assertIn(client.socket.getsubprotocol(), (None, "orama"))
        self.assertEqual(client.socket.getsubprotocol() is None, "orama" not in (subprotocols or []))
        try:
            client.say("join")
        except OSError:  # it is closed already
            pass
        if client._receive(time.monotonic() + 10) and client.received:
            kind: str = client.received[0]["type"]
            return kind
        return client.until_closed()

    def test_forms(self) -> None:
        """The headers, ?api_key= and ?token=, and the pair of subprotocols; a colon raw or encoded."""
        key, encoded = node().key, quote(node().key, safe="")
        self.assertIn("%3A", encoded)
        for form in (
            {"X_API_Key": key},
            {"Authorization": f"ApiKey {key}"},
            {"Authorization": f"Bearer {token()}"},
            {"query": f"&api_key={key}"},
            {"query": f"&api_key={encoded}"},
            {"query": f"&token={token()}"},
            {"subprotocols": ["orama", f"auth.{key}"]},
            {"subprotocols": ["orama", f"auth.{encoded}"]},
            {"subprotocols": ["orama", f"auth.{token()}"]},
        ):
            self.assertEqual(self.verdict(**form), "welcome", form)  # type: ignore[arg-type]

    def test_order(self) -> None:
        """Headers before the query, the query before the subprotocol, a key before a token: the first one decides."""
        key, good = node().key, token()
        self.assertEqual(self.verdict(f"&api_key={key}", X_API_Key="ak_wrong:default"), 4401)
        self.assertEqual(self.verdict(f"&api_key={key}", Authorization="Bearer x.y.z"), 4401)
        self.assertEqual(self.verdict("&api_key=ak_wrong:default", X_API_Key=key), "welcome")
        self.assertEqual(self.verdict(f"&api_key=ak_wrong:default&token={good}"), 4401)
        self.assertEqual(self.verdict(f"&api_key={key}&token=x.y.z"), "welcome")
        self.assertEqual(self.verdict("&token=x.y.z", ["orama", f"auth.{key}"]), 4401)
        self.assertEqual(self.verdict(f"&token={good}", ["orama", "auth.ak_wrong:default"]), "welcome")

    def test_refused(self) -> None:
        """4401 for nobody, and for every wrong one."""
        self.assertEqual(self.verdict(), 4401)
        self.assertEqual(self.verdict("&api_key="), 4401)
        self.assertEqual(self.verdict("&api_key=ak_wrong:default"), 4401)
        self.assertEqual(self.verdict("&token=x.y.z"), 4401)
        self.assertEqual(self.verdict(subprotocols=["orama", "auth.x.y.z"]), 4401)
        self.assertEqual(self.verdict(subprotocols=["orama"]), 4401)


class TokenTests(AuthenticationTestCase):
    def bearer(self, text: str) -> Answer:
        return self.rooms(Authorization=f"Bearer {text}")

    def test_algorithms(self) -> None:
        """EdDSA, ES256 and RS256, with configured keys and with those of a JWKS file, by kid or without one."""
        for algorithm, key in keys().private.items():
            self.good(self.bearer(token(algorithm, key)))
        for algorithm, key in keys().published.items():
            self.good(self.bearer(token(algorithm, key, {"kid": f"{algorithm}-1"})))
            self.good(self.bearer(token(algorithm, key)))

    def test_none(self) -> None:
        """``none`` is refused, in every spelling."""
        for name in ("none", "None", "NONE"):
            head = urlsafe_b64encode(json.dumps({"alg": name, "typ": "JWT"}).encode()).rstrip(b"=")
            body = urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=")
            self.bad(self.bearer(f"{head.decode()}.{body.decode()}."), "invalid_token")

    def test_hmac(self) -> None:
        """HMAC algorithms are refused, also with a public key of ours as their secret."""
        for algorithm, digest in (("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512")):
            for secret in (b"secret", _pem(keys().private["RS256"]), _pem(keys().private["EdDSA"])):
                parts = [json.dumps({"alg": algorithm, "typ": "JWT"}).encode(), json.dumps(claims()).encode()]
                signed = b".".join(urlsafe_b64encode(part).rstrip(b"=") for part in parts)
                mac = urlsafe_b64encode(hmac.digest(secret, signed, digest)).rstrip(b"=")
                self.bad(self.bearer(f"{signed.decode()}.{mac.decode()}"), "invalid_token")

    def test_other_algorithms(self) -> None:
        """A key of ours under an algorithm that is not in the contract is refused."""
        self.bad(self.bearer(token("PS256", keys().private["RS256"])), "invalid_token")
        self.bad(self.bearer(token("RS512", keys().private["RS256"])), "invalid_token")

    def test_signature(self) -> None:
        """A key that we do not know, or a token that was changed."""
        self.bad(self.bearer(token(key=ed25519.Ed25519PrivateKey.generate())), "invalid_token")
        head, body, signature = token().split(".")
        changed = urlsafe_b64encode(json.dumps(claims(role="owner")).encode()).rstrip(b"=").decode()
        self.bad(self.bearer(f"{head}.{changed}.{signature}"), "invalid_token")
        self.bad(self.bearer(f"{head}.{body}."), "invalid_token")

    def test_claims(self) -> None:
        """sub, namespace and exp must be there and be right; times are held to."""
        now = int(time.time())
        for wrong in (
            {"sub": None},
            {"sub": 7},
            {"sub": ""},
            {"namespace": None},
            {"namespace": ["default"]},
            {"exp": None},
            {"exp": now - 1},
            {"exp": "soon"},
            {"nbf": now + 600},
            {"role": "admin"},
            {"rooms": "all"},
            {"rooms": [1]},
            {"permissions": "publish"},
        ):
            payload = {name: value for name, value in claims(**wrong).items() if value is not None}
            raw = jwt.api_jws.encode(json.dumps(payload).encode(), keys().private["EdDSA"], "EdDSA")
            self.bad(self.bearer(raw), "invalid_token")

    def test_unknown_namespace(self) -> None:
        """A good token for a namespace that is not there: 404, and 4404 on the socket."""
        answer = self.bearer(token(namespace="nobody"))
        self.assertEqual((answer.status, answer.code), (404, "namespace_not_found"))
        client = Client(node(), f"?room=r&token={token(namespace='nobody')}")
        self.assertEqual(client.until_closed(), 4404)

    def test_role(self) -> None:
        """``member`` unless it says ``owner``."""

        def make(**more: Any) -> int:
            headers = {"Authorization": f"Bearer {token(**more)}"}
            return ask(node(), "POST", ROOMS, {"room_id": f"role-{more.get('role')}"}, headers).status

        self.assertEqual((make(), make(role="member"), make(role="owner")), (403, 403, 201))

    def test_rooms(self) -> None:
        """``rooms`` are those that may be joined: 4403 for another, by address or by message."""
        good = token(rooms=["mine"])
        client = Client(node(), f"?room=mine&token={good}")
        self.addCleanup(client.close)
        client.say("join")
        client.until("welcome")
        self.assertEqual(Client(node(), f"?room=other&token={good}").until_closed(), 4403)
        client = Client(node(), f"?token={good}")
        client.say("join", roomId="other")
        self.assertEqual((client.error(), client.until_closed()), ("forbidden", 4403))

    def test_subject(self) -> None:
        """Under a token ``userId`` is ignored: ``sub`` it is."""
        client = Client(node(), f"?room=mine&token={token()}")
        self.addCleanup(client.close)
        client.say("join", userId="somebody else")
        self.assertEqual(client.until("welcome")["userId"], "ann")

    def test_permissions(self) -> None:
        """Without ``subscribe`` nothing can be subscribed to."""
        client = Client(node(), f"?room=mine&token={token(permissions=['publish'])}")
        self.addCleanup(client.close)
        client.say("join")
        client.until("welcome")
        client.say("subscribe", trackId="t")
        self.assertEqual(client.error(), "forbidden")
