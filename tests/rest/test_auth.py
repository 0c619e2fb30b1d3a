"""Every form of a credential, and the order in which they count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.errors import Forbidden, NotAuthenticated, NotFound
from orama.permissions import EVERYTHING
from orama.rest.auth import Authenticator, Principal
from orama.rest.tokens import Tokens, new_key
from orama.settings import AuthSettings

OWNER = Principal("tenant", "owner", None, None, EVERYTHING, "api_key")
ANNA = Principal("tenant", "member", "anna", None, EVERYTHING, "jwt")
KEY = "ak_ABC:tenant"


class OneKey:
    """A store with one key of one namespace."""

    async def role_of(self, key: str) -> tuple[str, str] | None:
        return ("tenant", "owner") if key == KEY else None

    async def require(self, name: str) -> None:
        if name != "tenant":
            raise NotFound("namespace_not_found", "there is no such namespace")


class AuthenticatorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.tokens = Tokens(AuthSettings(), new_key(), Clock())
        self.authenticator = Authenticator(OneKey(), self.tokens)
        self.token = self.tokens.issue("tenant", "anna", ttl=60)

    def authenticate(
        self, headers: Mapping[str, str], query: Mapping[str, str] | None = None, subprotocols: Any = ()
    ) -> Principal:
        coroutine = self.authenticator.authenticate(headers, query, subprotocols)
        return self.successResultOf(ensureDeferred(coroutine))

    def refused(self, *arguments: Any, code: str) -> None:
        coroutine = self.authenticator.authenticate(*arguments)
        failure = self.failureResultOf(ensureDeferred(coroutine), NotAuthenticated)
        self.assertEqual(failure.value.code, code)
        for argument in (KEY, self.token):
            self.assertNotIn(argument, failure.value.message)

    def test_headers(self) -> None:
        """The three headers, whatever the case of the scheme."""
        self.assertEqual(self.authenticate({"x-api-key": KEY}), OWNER)
        for scheme in ("ApiKey", "apikey", "APIKEY"):
            self.assertEqual(self.authenticate({"authorization": f"{scheme} {KEY}"}), OWNER)
        for scheme in ("Bearer", "bearer"):
            self.assertEqual(self.authenticate({"authorization": f"{scheme} {self.token}"}), ANNA)

    def test_order(self) -> None:
        """``X-API-Key`` counts before ``Authorization``, and that before anything of the WebSocket."""
        bearer = {"authorization": f"Bearer {self.token}"}
        self.assertEqual(self.authenticate({"x-api-key": KEY, **bearer}), OWNER)
        self.assertEqual(self.authenticate(bearer, {"api_key": KEY}, ["orama", f"auth.{KEY}"]), ANNA)
        self.assertEqual(self.authenticate({}, {"api_key": KEY, "token": self.token}), OWNER)
        self.assertEqual(self.authenticate({}, {"token": self.token}, ["orama", f"auth.{KEY}"]), ANNA)

    def test_nothing_falls_through(self) -> None:
        """The first credential that is there decides, also when it is wrong."""
        bearer = {"authorization": f"Bearer {self.token}"}
        self.refused({"x-api-key": "ak_X:tenant", **bearer}, code="invalid_api_key")
        self.refused({"x-api-key": "", **bearer}, code="invalid_api_key")
        self.refused({"authorization": "Bearer no.good.token"}, {"api_key": KEY}, code="invalid_token")
        self.refused({"authorization": f"Bearer {KEY}"}, code="invalid_token")
        self.refused({"authorization": f"ApiKey {self.token}"}, code="invalid_api_key")
        self.refused({"authorization": "Basic abc"}, {"api_key": KEY}, code="invalid_authorization")
        self.refused({"authorization": KEY}, code="invalid_authorization")
        self.refused({"authorization": ""}, {"api_key": KEY}, code="invalid_authorization")
        self.refused({}, {"api_key": "ak_X:tenant", "token": self.token}, code="invalid_api_key")

    def test_nothing(self) -> None:
        """Without any credential it says that one is needed."""
        self.refused({}, code="missing_credentials")
        self.refused({}, {"room": "r"}, ["orama"], code="missing_credentials")

    def test_query(self) -> None:
        """For the WebSocket a key or a token in the query; a colon raw or still encoded."""
        self.assertEqual(self.authenticate({}, {"api_key": KEY}), OWNER)
        self.assertEqual(self.authenticate({}, {"api_key": KEY.replace(":", "%3A")}), OWNER)
        self.assertEqual(self.authenticate({}, {"token": self.token}), ANNA)
        self.assertEqual(self.authenticate({}, {"token": KEY}), OWNER)

    def test_subprotocols(self) -> None:
        """For the WebSocket the pair ``orama``, ``auth.…``, in any order, but never ``auth.…`` alone."""
        self.assertEqual(self.authenticate({}, {}, ["orama", f"auth.{KEY}"]), OWNER)
        self.assertEqual(self.authenticate({}, {}, ["auth." + KEY.replace(":", "%3a"), "orama"]), OWNER)
        self.assertEqual(self.authenticate({}, {}, ["orama", "x", f"auth.{self.token}"]), ANNA)
        self.refused({}, {}, [f"auth.{KEY}"], code="missing_credentials")

    def test_claims(self) -> None:
        """A token's role, rooms and permissions become the principal's; unknown permissions give nothing."""
        asked = ["subscribe", "publish:screen", "fly", "data:chat", "publish:", "publish:SCREEN"]
        token = self.tokens.issue("tenant", "anna", ttl=60, role="owner", rooms=["r"], permissions=asked)
        principal = self.authenticate({"authorization": f"Bearer {token}"})
        may = frozenset({"subscribe", "publish:screen"})
        expected = Principal("tenant", "owner", "anna", frozenset({"r"}), may, "jwt")
        self.assertEqual(principal, expected)
        self.assertTrue(principal.may_join("r"))
        self.assertFalse(principal.may_join("s"))
        self.assertRaises(Forbidden, principal.require_room, "s")
        principal.require_owner()
        self.assertRaises(Forbidden, ANNA.require_owner)

    def test_namespace_that_is_not(self) -> None:
        """A good token for a namespace that does not exist is 404: who asks is known, what is asked is not there."""
        token = self.tokens.issue("nobody", "anna", ttl=60)
        coroutine = self.authenticator.authenticate({"authorization": f"Bearer {token}"})
        self.failureResultOf(ensureDeferred(coroutine), NotFound)
