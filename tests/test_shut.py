"""What no relay may reach of what a node serves and uses."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from orama.settings import ClusterSettings, Settings, TurnSettings
from orama.shut import shut_places


class ShutTests(SynchronousTestCase):
    def settings(self, database: str = "", **cluster: str) -> Settings:
        return Settings(
            public_ip="203.0.113.1",
            internal_ip="10.0.0.1",
            database=database,
            turn=TurnSettings(relay_ip6="2001:db8::1"),
            cluster=ClusterSettings(**cluster),
        )

    def test_own_ports(self) -> None:
        """Own ports are shut on every address of this host and loopback: TURN, signalling, whatever it listens on."""
        shut = shut_places(self.settings(), [6001, 6002, 53, 0])
        for ip in ("203.0.113.1", "10.0.0.1", "2001:db8::1", "127.0.0.1", "127.9.9.9", "::1"):
            for port in (6001, 6002, 53, 3478, 5349, 30000, 30099):
                self.assertTrue(shut.has((ip, port)), (ip, port))
            for port in (6000, 29999, 30100, 20000):
                self.assertFalse(shut.has((ip, port)), (ip, port))
        self.assertFalse(shut.has(("10.0.0.2", 6001)), "another host")

    def test_used(self) -> None:
        """So is what the node uses, wherever it is: database, RQLite, Olric, gateway, at their usual ports unsaid."""
        for settings, place in (
            (self.settings("postgresql+psycopg://u:p@10.0.0.5/orama"), ("10.0.0.5", 5432)),
            (self.settings("postgresql+psycopg://u:p@10.0.0.5:6543/orama"), ("10.0.0.5", 6543)),
            (self.settings("rqlite+pyrqlite://10.0.0.5/"), ("10.0.0.5", 4001)),
            (self.settings("rqlite+pyrqlite://u:p@10.0.0.5:4001,10.0.0.6,[fd00::7]:5/?level=weak"), ("10.0.0.6", 4001)),
            (self.settings("rqlite+pyrqlite://u:p@10.0.0.5:4001,10.0.0.6,[fd00::7]:5/?level=weak"), ("fd00::7", 5)),
            (self.settings("postgresql+psycopg://u:p@localhost/orama"), ("127.0.0.1", 5432)),
            (self.settings("postgresql+psycopg://u:p@10.0.0.1/orama"), ("127.0.0.1", 5432)),
            (self.settings(rqlite="http://u:p@10.0.0.6:4001"), ("10.0.0.6", 4001)),
            (self.settings(rqlite="http://[fd00:0::6]:4001/"), ("fd00::6", 4001)),
            (self.settings(gateway="https://10.0.0.7"), ("10.0.0.7", 443)),
            (self.settings(olric="secret@10.0.0.8:3320"), ("10.0.0.8", 3320)),
            (self.settings(olric="[fd00::8]:3320"), ("fd00::8", 3320)),
        ):
            shut = shut_places(settings, [])
            self.assertTrue(shut.has(place), place)
            self.assertFalse(shut.has((place[0], place[1] + 1)), place)

    def test_nothing_said(self) -> None:
        """A database in a file, a Unix socket, and a host by its name are no address to shut."""
        for database in ("", "sqlite:////var/lib/orama.db", "postgresql+psycopg:///orama", "postgresql://db.example/o"):
            self.assertEqual(shut_places(self.settings(database), []).places, ())
