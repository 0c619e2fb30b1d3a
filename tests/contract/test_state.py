"""Contract, section 6: ports, tables and files, as somebody finds them who looks into the data directory."""

from __future__ import annotations

import sqlite3
import stat
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.contract import sdp, turn
from tests.contract.commands import OTHER, data, key, temporary
from tests.contract.rest import ask
from tests.contract.signalling import Client, connect, join
from tests.contract.stage import shared


class StateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = shared()

    def rows(self, statement: str) -> list[dict[str, Any]]:
        database = sqlite3.connect(f"file:{self.node.data / 'orama.db'}?mode=ro", uri=True, timeout=10)
        database.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in database.execute(statement)]
        finally:
            database.close()

    def blocks(self, namespace: str) -> dict[str, tuple[int, int]]:
        every = self.rows("SELECT * FROM webrtc_port_allocations")
        return {row["kind"]: (row["first_port"], row["last_port"]) for row in every if row["namespace"] == namespace}

    def test_tables(self) -> None:
        """The tables of the contract are there, and the migration that made them is written down."""
        tables = {row["name"] for row in self.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
        self.assertLessEqual(
            {
                "namespace_webrtc_config",
                "webrtc_rooms",
                "webrtc_port_allocations",
                "namespaces",
                "api_keys",
                "nodes",
                "dns_records",
                "alembic_version",
            },
            tables,
        )

    def test_blocks(self) -> None:
        """500 media ports, 800 relay ports and one signalling port a namespace, in their ranges, no two alike."""
        key(self.node, OTHER)
        found = [self.blocks(namespace) for namespace in ("default", OTHER)]
        for blocks in found:
            sizes = sorted((last - first + 1, 20000 <= first <= last <= 29999, 30000 <= first <= last <= 30099,
                            49152 <= first <= last <= 65535) for first, last in blocks.values())  # fmt: skip
            self.assertEqual(sizes, [(1, False, True, False), (500, True, False, False), (800, False, False, True)])
        for kind in found[0]:
            self.assertNotEqual(found[0][kind], found[1][kind])
        self.assertTrue(all((first - 20000) % 500 == 0 for first, last in _of(found, 500)))
        self.assertTrue(all((first - 49152) % 800 == 0 for first, last in _of(found, 800)))

    def test_ports_in_use(self) -> None:
        """Media, relays and signalling are where the tables say."""
        blocks = self.blocks("default")
        [media], [relays], [signalling] = _of([blocks], 500), _of([blocks], 800), _of([blocks], 1)
        client = connect(self.node, "ports")
        self.addCleanup(client.close)
        client.say("offer", sdp=sdp.offer("audio"))
        self.assertTrue(media[0] <= sdp.media_address(client.until("answer")["sdp"])[1] <= media[1])
        relay = turn.of(client.received[1])
        self.addCleanup(relay.release)
        self.assertTrue(relays[0] <= relay.allocate().address(turn.XOR_RELAYED_ADDRESS)[1] <= relays[1])
        inside = connect(self.node, "ports", host=f"127.0.0.1:{signalling[0]}")
        self.addCleanup(inside.close)
        inside.say("join")
        self.assertEqual(inside.until("welcome")["peers"][0]["peerId"], client.received[0]["peerId"])

    def test_signalling_port_is_one_namespaces(self) -> None:
        """The signalling port of one namespace serves no other, and nothing but signalling."""
        headers = {"X-API-Key": key(self.node, OTHER)}
        [signalling] = _of([self.blocks("default")], 1)
        stranger = Client(self.node, "?room=r", headers=headers, host=f"127.0.0.1:{signalling[0]}")
        self.assertEqual(stranger.until_closed(), 4404)
        for path in ("/v1/webrtc/rooms", "/health", "/metrics", "/"):
            self.assertEqual(ask(self.node, "GET", path, host=f"127.0.0.1:{signalling[0]}").status, 404, path)

    def test_freed(self) -> None:
        """Disabling gives the blocks back and forgets the secret; enabling takes others and makes a new one."""
        headers = temporary(self, self.node, "freed")
        secret = data(self.node, "turn", "secret", "--namespace", "freed")["secret"]
        self.assertEqual(len(self.blocks("freed")), 3)
        self.assertEqual(ask(self.node, "POST", "/v1/namespace/webrtc/disable", headers=headers).status, 200)
        self.assertEqual(self.blocks("freed"), {})
        [config] = self.rows("SELECT * FROM namespace_webrtc_config WHERE namespace = 'freed'")
        self.assertIsNone(config["turn_secret_encrypted"])
        self.assertEqual(ask(self.node, "POST", "/v1/namespace/webrtc/enable", headers=headers).status, 200)
        self.assertNotEqual(data(self.node, "turn", "secret", "--namespace", "freed")["secret"], secret)
        self.assertEqual(len(self.blocks("freed")), 3)

    def test_rooms(self) -> None:
        """A room is one row, with the node that has it."""
        client = join(self.node, "row")
        self.addCleanup(client.close)
        [row] = self.rows("SELECT * FROM webrtc_rooms WHERE room_id = 'row'")
        self.assertEqual(row["namespace"], "default")
        self.assertEqual(row["node_id"], ask(self.node, "GET", "/health", headers={}).json["node_id"])

    def test_modes(self) -> None:
        """The data directory is 0700, every file in it and the control socket 0600."""
        self.assertEqual(stat.S_IMODE(self.node.data.stat().st_mode), 0o700)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in self.node.data.iterdir() if not path.is_dir()}
        self.assertEqual({name: oct(mode) for name, mode in modes.items() if mode != 0o600}, {})
        self.assertTrue(stat.S_ISSOCK((self.node.data / "control.sock").stat().st_mode))


def _of(found: list[dict[str, tuple[int, int]]], size: int) -> list[tuple[int, int]]:
    """The blocks of that many ports."""
    return [block for blocks in found for block in blocks.values() if block[1] - block[0] + 1 == size]
