"""The description of the interface, held against the interface."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SkipTest

from orama.cluster.turn_access import TurnAccess
from orama.rest.openapi import describe
from orama.settings import LimitSettings, Settings
from orama.signaling.resource import SignalResource
from orama.signaling.service import SignalingService
from tests.rest.service import ServiceCase

#: Cases that Schemathesis makes for each operation in each of its phases.
EXAMPLES = "25"


class DescriptionTests(ServiceCase):
    timeout = 240.0
    settings = evolve(Settings(), limits=LimitSettings(request_rate=10_000, request_burst=10_000))

    async def setUp(self) -> None:
        await super().setUp()
        access = TurnAccess(self.settings, self.namespaces, self.clock)
        rooms: Any = self.rooms
        service = SignalingService(reactor, self.settings, rooms, self.node.directory, access)
        authenticator, require = self.authenticator, self.namespaces.require_webrtc
        self.serve(self.make_site(SignalResource(service, self.settings, authenticator, require)))
        await self.namespaces.create("default")

    async def test_served(self) -> None:
        """The document is served to anyone, as it was made."""
        answer = await self.call("GET", "/v1/openapi.json")
        self.assertEqual((answer.status, answer.json), (200, describe(self.settings)))

    async def test_every_method(self) -> None:
        """What is described is there, and what is there at those addresses is described."""
        for path, operations in describe(self.settings)["paths"].items():
            answer = await self.call("TRACE", path)
            self.assertEqual(answer.outcome, (405, "method_not_allowed"), path)
            allowed = set((answer.header("allow") or "").split(", ")) - {"HEAD", "OPTIONS"}
            described = {"get"} if "x-websocket" in operations else set(operations)
            self.assertEqual(allowed, {method.upper() for method in described}, path)

    async def test_schemathesis(self) -> None:
        """Schemathesis finds nothing wrong, with good data and with bad, under an owner's key."""
        await self.schemathesis("--exclude-path-regex", "webrtc/(dis|en)able")

    async def test_schemathesis_enablement(self) -> None:
        """Nor while WebRTC is switched off and on under everything else."""
        await self.schemathesis("--include-path-regex", "^/v1/(namespace|webrtc/rooms)")

    async def schemathesis(self, *options: str) -> None:
        if find_spec("schemathesis") is None:
            raise SkipTest("schemathesis is not installed")
        arguments = ["-m", "schemathesis.cli", "run", f"{self.base}/v1/openapi.json", "-H", f"X-API-Key: {self.owner}"]
        arguments += ["--checks", "all", "-n", EXAMPLES, "--seed", "1", "--no-color", "--warnings", "off"]
        arguments += ["--continue-on-failure", "--generation-database", "none", *options]
        out, errors, code = await getProcessOutputAndValue(sys.executable, arguments, os.environ)
        self.assertEqual(code, 0, f"{out.decode(errors='replace')}\n{errors.decode(errors='replace')}")
        self.assertIn(b"No issues found", out)
