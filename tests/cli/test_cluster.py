"""``orama cluster key`` and ``orama turn secret rotate``, against a real control socket."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from click.testing import CliRunner, Result
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.python.filepath import FilePath
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Request

from orama.cli.main import main
from orama.cluster.keyring import ClusterKey, Keyring, new_key
from orama.cluster.rotation import Rotation
from orama.errors import Unavailable
from orama.rest.control import listen_control
from orama.rest.control_cluster import ClusterKeyResource
from orama.rest.json_resource import JsonResource, Reply, json_object
from orama.rest.origins import Origins
from orama.rest.site import Site, put_resource
from orama.settings import Settings

reactor: Any = _reactor


class Rotated(JsonResource):
    """Remembers whose TURN secret was to be rotated."""

    def __init__(self) -> None:
        super().__init__(Origins(()))
        self.asked: list[Any] = []

    async def post(self, request: Request) -> Reply:
        self.asked.append(json_object(request))
        return Reply(body={"namespace": "tenant", "rotated": True})


class ClusterCommandTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.dir = Path(mkdtemp(prefix="orama-cli-"))
        self.addCleanup(FilePath(str(self.dir)).remove)
        self.keyring = Keyring([ClusterKey(0, new_key())])
        self.failing = False
        self.going: Deferred[None] | None = None
        self.begun: Deferred[None] = Deferred()
        self.turn = Rotated()
        root: Resource = JsonResource(Origins(()))
        for path, leaf in (
            (b"v1/control/cluster/key", ClusterKeyResource(self.keyring, self.rotate)),
            (b"v1/control/turn/secret/rotate", self.turn),
        ):
            put_resource(root, path.split(b"/"), leaf, Origins(()))
        port = listen_control(reactor, self.dir, Site(root, Settings(), reactor))
        self.addCleanup(port.stopListening)

    async def rotate(self) -> Rotation:
        self.begun.callback(None)
        if self.going is not None:
            await self.going
        if self.failing:
            raise Unavailable("rotation_stopped", "node node-2: no answer in 5 s; nothing was changed")
        self.keyring.use(ClusterKey(1, new_key()))
        self.keyring.forget_others()
        return Rotation(self.keyring.fingerprints[0], ("node-1", "node-2"), 3)

    async def run_it(self, *arguments: str) -> Result:
        where = ["--data-dir", str(self.dir)]
        result: Result = await deferToThread(CliRunner().invoke, main, [*arguments, *where])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    async def test_fingerprint(self) -> None:
        """What identifies the key is shown, the key is not."""
        (fingerprint,) = self.keyring.fingerprints
        result = await self.run_it("cluster", "key", "show-fingerprint")
        self.assertEqual((result.exit_code, result.stderr), (0, ""))
        self.assertIn(fingerprint, result.stdout)
        result = await self.run_it("cluster", "key", "show-fingerprint", "--json")
        self.assertEqual(json.loads(result.stdout), {"current": fingerprint, "keys": [fingerprint]})

    async def test_rotate(self) -> None:
        """The new fingerprint, who took part, and how many secrets were sealed again."""
        (before,) = self.keyring.fingerprints
        result = await self.run_it("cluster", "key", "rotate", "--json")
        (fingerprint,) = self.keyring.fingerprints
        self.assertNotEqual(fingerprint, before)
        self.assertEqual(
            json.loads(result.stdout),
            {"current": fingerprint, "keys": [fingerprint], "nodes": ["node-1", "node-2"], "resealed": 3},
        )

    async def test_stopped(self) -> None:
        """A rotation that cannot be finished exits 1 and says at which node."""
        self.failing = True
        result = await self.run_it("cluster", "key", "rotate")
        self.assertEqual((result.exit_code, result.stdout), (1, ""))
        self.assertEqual(result.stderr, "orama: node node-2: no answer in 5 s; nothing was changed\n")

    async def test_one_at_a_time(self) -> None:
        """While one rotation runs, a second one is refused."""
        self.going = Deferred()
        first = Deferred.fromCoroutine(self.run_it("cluster", "key", "rotate"))
        await self.begun
        second = await self.run_it("cluster", "key", "rotate")
        self.assertEqual(second.exit_code, 1)
        self.assertIn("already", second.stderr)
        self.going.callback(None)
        self.assertEqual((await first).exit_code, 0)

    async def test_turn_secret(self) -> None:
        """A namespace gets another TURN secret, which is not shown."""
        result = await self.run_it("turn", "secret", "rotate", "--namespace", "tenant", "--json")
        self.assertEqual(json.loads(result.stdout), {"namespace": "tenant", "rotated": True})
        self.assertEqual(self.turn.asked, [{"namespace": "tenant"}])

    async def test_usage(self) -> None:
        """Anything else that is done to a secret is wrong usage."""
        result = await self.run_it("turn", "secret", "delete", "--namespace", "tenant")
        self.assertEqual((result.exit_code, self.turn.asked), (2, []))
