"""Which certificate a TURN host is served with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from orama.cluster.certificates import GRACE, TurnCertificates
from orama.net.tls import ServerCertificates
from orama.settings import CertificateSettings, Settings
from tests.cluster.caddies import MemoryCaddy
from tests.cluster.pairs import DAY, write_pair
from tests.net.test_tls import common_name, handshake

NOW = 1_800_000_000.0
HOST = "turn.ns-a.example.org"
OTHER = "turn.ns-b.example.org"
PUBLIC = "192.0.2.1"


class CertificateCase(SynchronousTestCase):
    """A node with a directory of certificates, and Caddy where a test wants it."""

    def setUp(self) -> None:
        self.top = Path(self.mktemp()).resolve()
        self.directory = self.top / "lego"
        self.directory.mkdir(parents=True)
        self.clock = Clock()
        self.clock.advance(NOW)
        self.caddyfile = self.top / "Caddyfile"
        self.caddyfile.write_text("example.org {\n}\n")
        self.storage = self.top / "storage"
        self.caddy = MemoryCaddy(self.clock, self.caddyfile, self.storage)
        self.use()

    def use(self, caddy: bool = False, directory: bool = True, default: tuple[Path, Path] | None = None) -> None:
        """Start over with these sources."""
        self.settings = Settings(
            base_domain="example.org",
            public_ip=PUBLIC,
            certificates=CertificateSettings(
                directory=str(self.directory) if directory else "",
                caddyfile=str(self.caddyfile) if caddy else "",
                caddy_storage=str(self.storage),
            ),
        )
        files = (str(default[0]), str(default[1])) if default else ("", "")
        self.served = ServerCertificates(self.top / "own", (PUBLIC,), self.clock, *files)
        self.restart()

    def restart(self) -> None:
        self.certificates = TurnCertificates(self.clock, self.settings, self.served, self.caddy.run)

    def write(self, stem: str, *names: str, days: float = 90, start: float = -1, **more: Any) -> tuple[Path, Path]:
        now = self.clock.seconds()
        return write_pair(self.directory, stem, *names, start=now + start * DAY, end=now + days * DAY, **more)

    def ensure(self, *hosts: str) -> dict[str, dict[str, Any]]:
        """One pass; the report's rows by host."""
        self.successResultOf(Deferred.fromCoroutine(self.certificates.ensure(hosts)))
        return {row["host"]: row for row in self.certificates.report()}

    def serves(self, name: str = HOST) -> str:
        """The subject that a client sees that asks for *name*."""
        return common_name(handshake(self.served, name)[0])


class DirectoryTests(CertificateCase):
    def test_nothing_given(self) -> None:
        """Without any source there is a self-signed certificate with the host's name, and nothing is wrong."""
        row = self.ensure(HOST)[HOST]
        self.assertEqual(
            row,
            {
                "host": HOST,
                "source": "self-signed",
                "not_after": int(NOW + 365 * DAY),
                "names": ["localhost", HOST, PUBLIC],
                "error": None,
            },
        )
        self.assertEqual(self.serves(), PUBLIC)

    def test_without_a_domain(self) -> None:
        """A host that is an address has the default certificate, with the address in it."""
        row = self.ensure("192.0.2.1")["192.0.2.1"]
        self.assertEqual((row["source"], row["error"]), ("self-signed", None))
        self.assertIn("192.0.2.1", row["names"])

    def test_better_one_appears(self) -> None:
        """A file that fits takes the self-signed certificate's place at the next pass, for its host alone."""
        self.ensure(HOST, OTHER)
        self.write(HOST, HOST)
        rows = self.ensure(HOST, OTHER)
        self.assertEqual((rows[HOST]["source"], rows[HOST]["names"]), ("directory", [HOST]))
        self.assertEqual(rows[HOST]["not_after"], int(NOW + 90 * DAY))
        self.assertEqual((self.serves(HOST), self.serves(OTHER)), (HOST, PUBLIC))
        self.assertEqual(rows[OTHER]["source"], "self-signed")

    def test_wildcard(self) -> None:
        """A certificate for the names one level up counts, whatever its file is called; two levels up do not."""
        self.write("_.ns-a.example.org", "*.ns-a.example.org", "ns-a.example.org")
        self.write("_.example.org", "*.example.org")
        rows = self.ensure(HOST, OTHER)
        self.assertEqual((rows[HOST]["source"], rows[OTHER]["source"]), ("directory", "self-signed"))
        self.write("many", "x.example", OTHER)
        self.assertEqual(self.ensure(HOST, OTHER)[OTHER]["source"], "directory")
        self.assertEqual(self.serves(OTHER), "many")

    def test_does_not_fit(self) -> None:
        """That a file exists is not enough: names, key and dates have to fit, and what does not is told."""
        for said, prepare in (
            ("is for x.example.org, not for", lambda: self.write(HOST, "x.example.org")),
            ("not the private key of", lambda: self.write(HOST, HOST, other_key=True)),
            ("expired on 2027-01-14 08:00 UTC", lambda: self.write(HOST, HOST, start=-9, days=-1)),
            ("is not valid before 2027-01-16", lambda: self.write(HOST, HOST, start=1)),
            ("is for no name", lambda: self.write(HOST)),
            ("expired on", lambda: self.write("_.ns-a.example.org", "*.ns-a.example.org", start=-9, days=-1)),
            ("no PEM certificate", lambda: self.write(HOST, HOST)[0].write_text("rubbish")),
            ("No such file", lambda: self.write(HOST, HOST)[1].unlink()),
        ):
            for file in self.directory.iterdir():
                file.unlink()
            prepare()
            row = self.ensure(HOST)[HOST]
            self.assertEqual(row["source"], "self-signed", said)
            self.assertIn(said, row["error"])
            self.assertEqual(self.serves(), PUBLIC)

    def test_others_are_no_problem(self) -> None:
        """Files for other hosts, issuers' certificates and rubbish under other names are not spoken of."""
        self.write("other.example.org", "other.example.org", days=-0.5)
        self.write(f"{HOST}.issuer", HOST)[1].unlink()
        (self.directory / "x.crt").write_text("rubbish")
        (self.directory / "readme").write_text("rubbish")
        self.assertIsNone(self.ensure(HOST)[HOST]["error"])

    def test_the_longest(self) -> None:
        """Of several that fit the one that ends last is served."""
        self.write("a", HOST, days=10)
        self.write("b", HOST, days=80)
        self.write("c", HOST, days=40)
        self.ensure(HOST)
        self.assertEqual(self.serves(), "b")

    def test_no_directory(self) -> None:
        """A directory that is not there is told of, until it is."""
        self.directory.rmdir()
        self.assertEqual(self.ensure(HOST)[HOST]["error"], f"{self.directory}: No such file or directory")
        self.write(HOST, HOST)
        self.assertIsNone(self.ensure(HOST)[HOST]["error"])

    def test_renewal(self) -> None:
        """A renewed file is served at the next handshake, and the report has its dates at the next pass."""
        self.write(HOST, HOST, start=-70, days=20)
        self.assertIn("has not been renewed", self.ensure(HOST)[HOST]["error"])
        before, _ = handshake(self.served, HOST)
        self.clock.advance(DAY)
        self.write(HOST, HOST, days=90)
        after, _ = handshake(self.served, HOST)
        self.assertNotEqual(after, before)
        row = self.ensure(HOST)[HOST]
        self.assertEqual((row["not_after"], row["error"]), (int(NOW + 91 * DAY), None))

    def test_half_renewed(self) -> None:
        """While a pair is being written the one before is served, also over a pass; not for ever."""
        files = self.write(HOST, HOST)
        self.ensure(HOST)
        before, _ = handshake(self.served, HOST)
        key = files[1].read_bytes()
        self.write(HOST, HOST, days=91)
        files[1].write_bytes(key)
        row = self.ensure(HOST)[HOST]
        self.assertEqual(row["source"], "directory")
        self.assertIn("not the private key", row["error"])
        self.assertEqual(handshake(self.served, HOST)[0], before)
        self.clock.advance(GRACE + 1)
        self.assertEqual(self.ensure(HOST)[HOST]["source"], "self-signed")
        self.assertEqual(self.serves(), PUBLIC)
        self.write(HOST, HOST)
        self.assertEqual(self.ensure(HOST)[HOST]["source"], "directory")

    def test_expires_while_served(self) -> None:
        """At its end a certificate is served no more."""
        self.write(HOST, HOST, days=1)
        self.ensure(HOST)
        self.clock.advance(DAY - 1)
        self.assertEqual(self.ensure(HOST)[HOST]["source"], "directory")
        self.clock.advance(1)
        row = self.ensure(HOST)[HOST]
        self.assertEqual(row["source"], "self-signed")
        self.assertIn("expired on", row["error"])

    def test_host_gone(self) -> None:
        """A host that is not wanted any more is not served with its own certificate, nor spoken of."""
        self.write(HOST, HOST)
        self.write(OTHER, OTHER)
        self.ensure(HOST, OTHER)
        self.assertEqual(set(self.ensure(OTHER)), {OTHER})
        self.assertEqual(self.served.names(), [OTHER])
        self.assertEqual(self.ensure(), {})
        self.assertEqual(self.served.names(), [])

    def test_default_file(self) -> None:
        """The node's own file serves hosts that it covers; for others the report says that it does not."""
        for file in self.write("default", HOST):
            shutil.move(file, self.top)
        self.use(default=(self.top / "default.crt", self.top / "default.key"))
        rows = self.ensure(HOST, OTHER)
        self.assertEqual((rows[HOST]["source"], rows[HOST]["error"]), ("file", None))
        self.assertEqual(rows[OTHER]["source"], "file")
        self.assertIn(f"default.crt is for {HOST}, not for {OTHER}", rows[OTHER]["error"])
        self.write(HOST, HOST)
        self.assertEqual(self.ensure(HOST)[HOST]["source"], "directory")

    def test_passes_are_cheap(self) -> None:
        """A pass that finds the same files serves the same contexts and reads nothing anew."""
        self.write(HOST, HOST)
        self.ensure(HOST)
        context = self.served.choose(HOST)
        self.ensure(HOST)
        self.assertIs(self.served.choose(HOST), context)


class CaddyTests(CertificateCase):
    def setUp(self) -> None:
        super().setUp()
        self.use(caddy=True)

    def test_obtained(self) -> None:
        """A host without a certificate is put into the Caddyfile; what Caddy then has is served."""
        self.assertEqual(self.ensure(HOST)[HOST]["source"], "self-signed")
        self.assertIn(HOST, self.caddy.loaded)
        row = self.ensure(HOST)[HOST]
        self.assertEqual((row["source"], row["error"], row["names"]), ("caddy", None, [HOST]))
        self.assertEqual(self.serves(), HOST)
        self.assertEqual(self.caddy.reloads, 1)

    def test_host_gone(self) -> None:
        """When the host goes its block goes, and the rest of the file is as it was."""
        before = self.caddyfile.read_bytes()
        self.ensure(HOST, OTHER)
        self.ensure(OTHER)
        self.assertNotIn(HOST, self.caddy.loaded)
        self.assertIn(OTHER, self.caddy.loaded)
        self.ensure()
        self.assertEqual(self.caddyfile.read_bytes(), before)
        self.assertEqual(self.caddy.loaded.encode(), before)

    def test_a_file_is_preferred(self) -> None:
        """Where the directory has a certificate Caddy is not asked, and is asked when that has expired."""
        self.write(HOST, HOST, days=1)
        self.ensure(HOST)
        self.assertNotIn(HOST, self.caddy.loaded)
        self.clock.advance(DAY)
        self.ensure(HOST)
        self.assertEqual(self.ensure(HOST)[HOST]["source"], "caddy")
        self.write(HOST, HOST, days=30)
        self.assertEqual(self.ensure(HOST)[HOST]["source"], "directory")
        self.assertNotIn(HOST, self.caddy.loaded)

    def test_default_file_suffices(self) -> None:
        """Where the node's own file covers the host Caddy is not asked."""
        for file in self.write("default", HOST):
            shutil.move(file, self.top)
        self.use(caddy=True, default=(self.top / "default.crt", self.top / "default.key"))
        rows = self.ensure(HOST, OTHER)
        self.assertEqual(rows[HOST]["source"], "file")
        self.assertNotIn(HOST, self.caddy.loaded)
        self.assertIn(OTHER, self.caddy.loaded)
        self.assertEqual(self.ensure(HOST, OTHER)[OTHER]["source"], "caddy")

    def test_somebody_elses_wildcard(self) -> None:
        """A wildcard in Caddy's storage counts without a block of ours, for as long as it is renewed."""
        self.caddy.obtain("wildcard_.ns-a.example.org")
        self.assertEqual(self.ensure(HOST)[HOST]["source"], "caddy")
        self.assertNotIn(HOST, self.caddy.loaded)
        self.clock.advance(75 * DAY)
        self.assertIn("has not been renewed", self.ensure(HOST)[HOST]["error"])
        self.assertIn(HOST, self.caddy.loaded)
        row = self.ensure(HOST)[HOST]
        self.assertEqual((row["names"], row["error"]), ([HOST], None))

    def test_newest_issuer(self) -> None:
        """Of several issuers' certificates the one that ends last is served, and one that does not fit never."""
        self.caddy.obtain(HOST, days=1, issuer="local")
        self.caddy.obtain(HOST, days=80, issuer="acme-one")
        broken = self.caddy.obtain(HOST, days=90, issuer="acme-two")
        broken.with_suffix(".key").write_text("rubbish")
        row = self.ensure(HOST)[HOST]
        self.assertEqual((row["not_after"], row["error"]), (int(NOW + 80 * DAY), None))

    def test_does_not_block(self) -> None:
        """A reload that takes its time keeps no pass waiting; stopping ends it."""
        self.caddy.slow = Deferred()
        self.assertEqual(self.ensure(HOST)[HOST]["error"], None)
        self.ensure(HOST)
        self.assertEqual(self.caddy.reloads, 1)
        self.caddy.slow.callback(None)
        self.assertEqual(self.ensure(HOST)[HOST]["source"], "caddy")
        self.caddy.slow = Deferred()
        self.ensure(HOST, OTHER)
        stopping = Deferred.fromCoroutine(self.certificates.stop())
        self.successResultOf(stopping)
        self.assertTrue(self.caddy.slow.called)

    def test_timeout(self) -> None:
        """That Caddy obtains nothing is told when its time is over; what comes later is served all the same."""
        self.caddy.obtains = False
        self.ensure(HOST)
        self.clock.advance(119)
        self.assertIsNone(self.ensure(HOST)[HOST]["error"])
        self.clock.advance(1)
        row = self.ensure(HOST)[HOST]
        self.assertEqual(row["error"], "Caddy has obtained no certificate in 120 s")
        self.assertIn(HOST, self.caddy.loaded)
        self.caddy.obtain(HOST)
        row = self.ensure(HOST)[HOST]
        self.assertEqual((row["source"], row["error"]), ("caddy", None))

    def test_refused(self) -> None:
        """A block that Caddy refuses comes out again, the others work, and it is tried again, later each time."""
        before = self.caddyfile.read_bytes()
        self.caddy.refuses = HOST
        for _ in range(3):
            rows = self.ensure(HOST, OTHER)
        self.assertEqual(rows[HOST]["error"], "caddy: Error: adapting config")
        self.assertEqual(rows[OTHER]["source"], "caddy")
        self.assertNotIn(HOST, self.caddyfile.read_text())
        self.assertEqual(self.caddy.reloads, 2)
        times = []
        for second in range(100):
            self.clock.advance(1)
            count = self.caddy.reloads
            self.ensure(HOST, OTHER)
            if self.caddy.reloads > count:
                times.append(second + 1)
        self.assertEqual(times, [5, 15, 35, 75])
        self.caddy.refuses = "!"
        self.clock.advance(80)
        self.ensure(HOST, OTHER)
        self.assertEqual(self.ensure(HOST, OTHER)[HOST]["source"], "caddy")
        self.ensure()
        self.assertEqual(self.caddyfile.read_bytes(), before)

    def test_caddy_down(self) -> None:
        """While Caddy is away that is told, the file is left so that it can start, and then it is asked."""
        before = self.caddyfile.read_bytes()
        self.caddy.up = False
        self.ensure(HOST)
        self.assertEqual(self.ensure(HOST)[HOST]["error"], "caddy: Error: connection refused")
        self.assertEqual(self.caddyfile.read_bytes(), before)
        self.caddy.up = True
        self.clock.advance(5)
        self.ensure(HOST)
        self.assertEqual(self.ensure(HOST)[HOST]["source"], "caddy")

    def test_cannot_be_written(self) -> None:
        """A Caddyfile that is not there, or damaged, is named."""
        self.caddyfile.unlink()
        self.ensure(HOST)
        self.assertEqual(self.ensure(HOST)[HOST]["error"], f"{self.caddyfile}: No such file or directory")
        self.caddyfile.write_text(f"# END TURN CERT: {HOST}\n")
        self.clock.advance(5)
        self.ensure(HOST)
        self.assertIn(f"{self.caddyfile}: line 1: ", self.ensure(HOST)[HOST]["error"])
        self.assertEqual(self.caddyfile.read_text(), f"# END TURN CERT: {HOST}\n")

    def test_storage_of_somebody_else(self) -> None:
        """A storage that cannot be looked into is named."""
        self.caddy.obtains = False
        self.storage.mkdir()
        (self.storage / "certificates").symlink_to("certificates")
        error = self.ensure(HOST)[HOST]["error"]
        self.assertIn(f"{self.storage / 'certificates'}: ", error)

    def test_site_of_somebody_else(self) -> None:
        """A host that already is a site in the Caddyfile gets no block: Caddy would refuse two of a name."""
        self.caddyfile.write_text(f"{HOST} {{\n\trespond hello\n}}\n")
        before = self.caddyfile.read_bytes()
        self.ensure(HOST)
        self.assertEqual(self.caddyfile.read_bytes(), before)
        self.clock.advance(120)
        self.assertEqual(self.ensure(HOST)[HOST]["error"], "Caddy has obtained no certificate in 120 s")
        self.caddy.obtain(HOST)
        self.assertEqual(self.ensure(HOST)[HOST]["source"], "caddy")

    def test_restart(self) -> None:
        """A second life finds its blocks, lets Caddy read them, and takes out what is not wanted any more."""
        self.ensure(HOST, OTHER)
        self.restart()
        self.assertEqual(self.ensure(HOST)[HOST]["source"], "caddy")
        self.assertNotIn(OTHER, self.caddy.loaded)
        reloads = self.caddy.reloads
        self.ensure(HOST)
        self.assertEqual(self.caddy.reloads, reloads)

    def test_crashed_before_the_reload(self) -> None:
        """A block that an earlier life wrote, and that Caddy refuses, comes out again; a good one stays."""
        self.ensure(OTHER)
        good = self.caddyfile.read_text()
        block = good[good.index("# BEGIN") :]
        self.caddyfile.write_text(good + block.replace(OTHER, HOST))
        self.caddy.refuses = HOST
        self.restart()
        for _ in range(2):
            rows = self.ensure(HOST, OTHER)
        self.assertNotIn(HOST, self.caddyfile.read_text())
        self.assertEqual(rows[OTHER]["source"], "caddy")
        self.assertIn(OTHER, self.caddy.loaded)

    def test_crashed_before_the_reload_without(self) -> None:
        """A block that an earlier life took out, and that Caddy still has, is gone from Caddy too; asked once."""
        before = self.caddyfile.read_bytes()
        self.ensure(HOST)
        self.caddyfile.write_bytes(before)
        self.restart()
        for _ in range(3):
            self.ensure()
        self.assertNotIn(HOST, self.caddy.loaded)
        self.assertEqual(self.caddy.reloads, 2)

    def test_foreign_blocks(self) -> None:
        """Blocks of hosts that are not below our domain are somebody else's."""
        foreign = self.caddyfile.read_text() + "# BEGIN TURN CERT: turn.other.net\n# END TURN CERT: turn.other.net\n"
        self.caddyfile.write_text(foreign)
        self.ensure(HOST, "turn.elsewhere.net")
        self.assertNotIn("elsewhere", self.caddyfile.read_text())
        self.ensure()
        self.assertEqual(self.caddyfile.read_text(), foreign)

    def test_block_put_back(self) -> None:
        """A block that somebody took out, or changed, is put right."""
        self.ensure(HOST)
        good = self.caddyfile.read_text()
        for damaged in ("", good.replace("respond 404", "respond 200")):
            self.caddyfile.write_text(damaged)
            self.ensure(HOST)
            self.assertEqual(self.caddyfile.read_text()[-len(good) :].count("respond 404"), 1)
            self.assertEqual(self.caddy.loaded, self.caddyfile.read_text())

    def test_changed_tls(self) -> None:
        """Another ``caddy_tls`` changes the blocks that are there."""
        self.ensure(HOST)
        self.settings = evolve(
            self.settings, certificates=evolve(self.settings.certificates, caddy_tls="issuer internal")
        )
        self.restart()
        self.ensure(HOST)
        self.assertIn("issuer internal", self.caddy.loaded)
