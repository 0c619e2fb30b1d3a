"""Our blocks in somebody else's Caddyfile."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from orama.cluster import caddyfile
from orama.errors import ConfigurationError

A, B = "turn.ns-a.example.org", "turn.ns-b.example.org"
OTHERS = "{\n\temail me@example.org\n}\n\nexample.org, www.example.org {\n\trespond ok\n}\n"


class BlockTests(SynchronousTestCase):
    def test_block(self) -> None:
        """A block is a site with the TLS that the settings say, between two markers that name the host."""
        self.assertEqual(
            caddyfile.put(OTHERS, A, "issuer acme {\n  dns orama\n}"),
            OTHERS
            + "# BEGIN TURN CERT: turn.ns-a.example.org\n"
            + "turn.ns-a.example.org {\n"
            + "\ttls {\n\t\tissuer acme {\n\t\tdns orama\n\t\t}\n\t}\n"
            + "\trespond 404\n"
            + "}\n"
            + "# END TURN CERT: turn.ns-a.example.org\n",
        )
        self.assertNotIn("tls", caddyfile.put("", A, " \n"))

    def test_idempotent(self) -> None:
        """Put in again, a block stays; with other TLS it changes where it stands; two of a host become one."""
        text = caddyfile.put(caddyfile.put(OTHERS, A, ""), B, "")
        self.assertEqual(caddyfile.put(text, A, ""), text)
        changed = caddyfile.put(text, A, "issuer internal")
        self.assertLess(changed.index(A), changed.index(B))
        self.assertEqual(caddyfile.put(changed, A, ""), text)
        twice = text + caddyfile.render(A, "") + "\n"
        self.assertEqual(caddyfile.put(twice, A, ""), text)
        self.assertEqual(set(caddyfile.blocks(twice)), {A, B})
        self.assertEqual(caddyfile.take(twice, {A}), caddyfile.put(OTHERS, B, ""))

    @given(
        st.text(st.characters(codec="utf-8") | st.sampled_from("\n\r\t {}"), max_size=200),
        st.lists(st.sampled_from((A, B, "x.example.org")), unique=True),
    )
    def test_reversible(self, text: str, hosts: list[str]) -> None:
        """Taken out again, in any order, blocks leave what was there, whatever it is and however it ends."""
        filled = text
        for host in hosts:
            filled = caddyfile.put(filled, host, "issuer internal")
        self.assertEqual(set(caddyfile.blocks(filled)), set(hosts))
        self.assertEqual(caddyfile.take(filled, hosts), text)
        for host in sorted(hosts, reverse=True):
            filled = caddyfile.take(filled, (host,))
        self.assertEqual(filled, text)

    def test_injection(self) -> None:
        """What is not the name of a host never gets into the file."""
        for host in (
            "",
            "localhost",
            "192.0.2.1",
            "a.example {\n respond hello",
            "a.example\n",
            "*.example.org",
            "a b.example",
            "-a.example",
            "a..example",
            "a.example.",
            "A.example",
            "a_b.example",
            "a.example:443",
            "{$HOST}.example",
            f"{'a' * 64}.example",
            ".".join(["a" * 60] * 5),
        ):
            self.assertFalse(caddyfile.is_host(host), host)
            self.assertRaises(ConfigurationError, caddyfile.put, OTHERS, host, "")
        for host in (A, "turn.ns-a--b.xn--bcher-kva.example", "a.bc"):
            self.assertTrue(caddyfile.is_host(host), host)
        self.assertRaises(ConfigurationError, caddyfile.put, OTHERS, A, f"x\n# END TURN CERT: {A}\n")

    def test_lonely_marker(self) -> None:
        """With a marker that stands alone nobody can say what is ours: the line is named."""
        whole = caddyfile.render(A, "")
        first, last = whole.split("\n")[0], whole.split("\n")[-1]
        for text, line in (
            (f"{OTHERS}{first}\n", 8),
            (f"{last}\n{whole}\n", 1),
            (f"{first}\n{whole}\n", 1),
            (f"{first}\n# END TURN CERT: {B}\n", 2),
        ):
            for attempt in (
                lambda text=text: caddyfile.put(text, A, ""),
                lambda text=text: caddyfile.take(text, {A}),
                lambda text=text: caddyfile.blocks(text),
            ):
                self.assertIn(f"line {line}: ", self.assertRaises(ConfigurationError, attempt).message)

    def test_mentions(self) -> None:
        """A site of somebody else's with the host is found however its address is written; a comment is none."""
        for address in (A, f"https://{A}", f"{A}:443", f"example.com, {A.upper()}", f"{A}{{", f"http://{A}:80/x"):
            self.assertTrue(caddyfile.mentions(f"{OTHERS}{address} {{\n}}\n", A), address)
        for other in (f"# {A} {{", f"x.{A} {{", f"{A}.com {{", "*.ns-a.example.org {"):
            self.assertFalse(caddyfile.mentions(f"{OTHERS}{other}\n}}\n", A), other)
        self.assertFalse(caddyfile.mentions(caddyfile.put(OTHERS, A, ""), A))


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir()
        self.file = self.directory / "Caddyfile"

    def test_mode_and_owner(self) -> None:
        """Mode, owner and group stay, a symbolic link stays one, and nothing lies beside the file afterwards."""
        target = self.directory / "real"
        target.write_text(OTHERS)
        target.chmod(0o640)
        if os.geteuid() == 0:
            os.chown(target, 65534, 65533)
        self.file.symlink_to(target)
        before = target.stat()
        caddyfile.write(self.file, "new")
        after = target.stat()
        self.assertEqual(target.read_text(), "new")
        self.assertTrue(self.file.is_symlink())
        self.assertEqual(stat.S_IMODE(after.st_mode), 0o640)
        self.assertEqual((after.st_uid, after.st_gid), (before.st_uid, before.st_gid))
        self.assertEqual(sorted(each.name for each in self.directory.iterdir()), ["Caddyfile", "real"])

    def test_any_bytes(self) -> None:
        """Bytes that are no UTF-8 come back as they were."""
        content = bytes(range(256)) + b"\r\n"
        self.file.write_bytes(content)
        caddyfile.write(self.file, caddyfile.put(caddyfile.read(self.file), A, ""))
        self.assertTrue(self.file.read_bytes().startswith(content))
        caddyfile.write(self.file, caddyfile.take(caddyfile.read(self.file), {A}))
        self.assertEqual(self.file.read_bytes(), content)

    def test_missing(self) -> None:
        """A file that is not there is not made: it names itself."""
        for attempt in (lambda: caddyfile.read(self.file), lambda: caddyfile.write(self.file, "x")):
            error = self.assertRaises(ConfigurationError, attempt)
            self.assertEqual(error.message, f"{self.file}: No such file or directory")
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_cannot_write(self) -> None:
        """Where the directory cannot be written the file stays whole, and the reason is told."""
        if not Path("/proc/version").exists():
            raise SkipTest("needs /proc")
        self.file.symlink_to("/proc/version")
        error = self.assertRaises(ConfigurationError, caddyfile.write, self.file, "x")
        self.assertTrue(error.message.startswith(f"{self.file}: "), error.message)
