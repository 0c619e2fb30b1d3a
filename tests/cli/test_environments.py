"""The environments file: what may stand in it, and what is said about what may not."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.cli.control import Failed
from orama.cli.environments import Address, load

GOOD = """
[devnet]
nodes = ["10.0.0.1:6002", "10.0.0.2", "[fd00::3]:7000", "fd00::4"]
key = "cluster.key"
dns = ["198.51.100.1", "ns.example:5353"]
base_domain = "Orama-Devnet.network."

[home]
nodes = ["127.0.0.1"]
key = "~/cluster.key"
"""


class EnvironmentTests(SynchronousTestCase):
    def write(self, text: str) -> Path:
        file = Path(self.mktemp())
        file.write_text(text)
        return file

    def test_read(self) -> None:
        """Addresses with and without port, a domain in its usual form, and a key beside the file."""
        file = self.write(GOOD)
        devnet = load("devnet", file)
        self.assertEqual(
            devnet.nodes,
            (Address("10.0.0.1", 6002), Address("10.0.0.2", 6002), Address("fd00::3", 7000), Address("fd00::4", 6002)),
        )
        self.assertEqual(devnet.dns, (Address("198.51.100.1", 53), Address("ns.example", 5353)))
        self.assertEqual(devnet.base_domain, "orama-devnet.network")
        self.assertEqual(devnet.key, file.parent / "cluster.key")
        home = load("home", file)
        self.assertEqual((home.dns, home.base_domain, home.key), ((), "", Path("~/cluster.key").expanduser()))

    def refused(self, text: str, name: str = "devnet") -> str:
        """One line that names the file."""
        file = self.write(text)
        message = str(self.assertRaises(Failed, load, name, file))
        self.assertIn(str(file), message)
        return message

    def test_unknown(self) -> None:
        """Who asks for an environment that is not there is told which are."""
        self.assertIn("there is: devnet, home", self.refused(GOOD, "prod"))
        self.assertIn("there is: none", self.refused("", "prod"))
        self.assertIn("no environment 'devnet'", self.refused("devnet = 3"))

    def test_wrong(self) -> None:
        """Whatever is wrong is named by its key."""
        for lines, text in (
            ('key = "k"', "devnet.nodes: must name at least one node"),
            ('nodes = []\nkey = "k"', "devnet.nodes: must name at least one node"),
            ('nodes = "10.0.0.1"\nkey = "k"', "devnet.nodes: must be a list of texts"),
            ('nodes = [1]\nkey = "k"', "devnet.nodes: must be a list of texts"),
            ('nodes = ["10.0.0.1:x"]\nkey = "k"', "devnet.nodes: '10.0.0.1:x' has no port"),
            ('nodes = ["10.0.0.1:70000"]\nkey = "k"', "devnet.nodes: '10.0.0.1:70000' has no port"),
            ('nodes = ["a", "a:6002"]\nkey = "k"', "devnet.nodes: the same twice"),
            ('nodes = ["10.0.0.1"]', "devnet.key: must be the path"),
            ('nodes = ["10.0.0.1"]\nkey = 3', "devnet.key: must be the path"),
            ('nodes = ["10.0.0.1"]\nkey = "k"\nbase_domain = 3', "devnet.base_domain: must be a text"),
            ('node = ["10.0.0.1"]', "devnet.node: unknown; did you mean nodes?"),
        ):
            self.assertIn(text, self.refused(f"[devnet]\n{lines}\n"))
        self.assertIn("Expected ']'", self.refused("[devnet"))

    def test_no_file(self) -> None:
        """A file that is not there is named."""
        missing = Path(self.mktemp())
        error = self.assertRaises(Failed, load, "devnet", missing)
        self.assertEqual(error.code, "no_environments")
        self.assertIn(str(missing), str(error))


class AddressTests(SynchronousTestCase):
    def test_refused(self) -> None:
        """What is no address raises ValueError."""
        for text in ("", ":1", "a b", "a/b", "[::1", "[10.0.0.1]:1", "[::1]x", "::1::", "a:", "a:0", "a:+1", "a:١"):
            self.assertRaises(ValueError, Address.parse, text, 1)

    @given(st.ip_addresses(), st.integers(1, 65535))
    def test_round_trip(self, ip: object, port: int) -> None:
        """What is written can be read."""
        address = Address(str(ip), port)
        self.assertEqual(Address.parse(str(address), 1), address)

    @given(st.text(max_size=20))
    def test_total(self, text: str) -> None:
        """Any text is an address or a ValueError."""
        try:
            Address.parse(text, 1)
        except ValueError:
            pass
