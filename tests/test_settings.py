"""What a node can be told, and how it says that it was told wrongly."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
from twisted.trial.unittest import SynchronousTestCase

from orama.configuration import CHECKS, RANGES, keys
from orama.errors import ConfigurationError
from orama.settings import Settings, load

SAMPLE = Path(__file__).resolve().parent.parent / "etc" / "orama.toml"


class SettingsTestCase(SynchronousTestCase):
    def write(self, text: str) -> Path:
        file = Path(self.mktemp())
        file.write_text(text)
        return file

    def refused(self, text: str, **options: object) -> str:
        """The one line that *text* is refused with, without the file's name."""
        file = self.write(text)
        error = self.assertRaises(ConfigurationError, load, file, options)
        self.assertNotIn("\n", error.message)
        return error.message.replace(f"{file}: ", "")


class SampleTests(SettingsTestCase):
    def test_every_default(self) -> None:
        """``etc/orama.toml`` has every key, commented out, with exactly its default."""
        text = SAMPLE.read_text()
        uncommented = re.sub(r"^# ([a-z0-9_]+ = )", r"\1", text, flags=re.MULTILINE)
        found, table = set(), ""
        for line in uncommented.splitlines():
            if match := re.fullmatch(r"\[(\w+)\]", line):
                table = f"{match[1]}."
            elif match := re.match(r"(\w+) = ", line):
                found.add(table + match[1])
        self.assertEqual(found, set(keys(Settings)))
        self.assertEqual(load(self.write(uncommented)), load())

    def test_unchanged(self) -> None:
        """The sample as it stands is a valid configuration that changes nothing."""
        self.assertEqual(load(SAMPLE), load())

    def test_every_number_has_a_range(self) -> None:
        """No number is taken without a least and a most."""
        numbers = {key for key in keys(Settings) if isinstance(_value(load(), key), (int, float))}
        flags = {key for key in numbers if isinstance(_value(load(), key), bool)}
        self.assertEqual(numbers - flags, set(RANGES))
        self.assertLessEqual(set(CHECKS), set(keys(Settings)))


class PrecedenceTests(SettingsTestCase):
    def test_defaults(self) -> None:
        """Without a file and options every value is its default; only the data directory became absolute."""
        self.assertEqual(load(), attrs.evolve(Settings(), data_dir=Path("orama-data").absolute()))

    def test_options_win(self) -> None:
        """An option wins over the file, the file over the default."""
        file = self.write("turn-port = 1000\nturns_port = 1001\n[turn]\ncredential-ttl = 20\n")
        settings = load(file, {"turn_port": 2000})
        self.assertEqual((settings.turn_port, settings.turns_port, settings.turn.credential_ttl), (2000, 1001, 20))

    def test_addresses_are_canonical(self) -> None:
        """Addresses come out in the one spelling that the rest compares."""
        settings = load(self.write('internal_ip = "FD00:0::1"\n[sfu]\nrelay_addresses = ["2001:DB8::0"]\n'))
        self.assertEqual(settings.internal_ip, "fd00::1")
        self.assertEqual(settings.sfu.relay_addresses, ("2001:db8::",))

    def test_namespaces(self) -> None:
        """What is different for a namespace stands in a table under its name; what is not told is as it was."""
        settings = load(
            self.write('[turn.namespaces.my-app]\nallowed-peers = ["192.0.2.0/24"]\nbandwidth_per_user = 0\n')
        )
        mine = settings.turn.namespaces["my-app"]
        self.assertEqual((mine.allowed_peers, mine.bandwidth_per_user), (("192.0.2.0/24",), 0))
        self.assertIsNone(mine.allocations_per_user)


class RefusalTests(SettingsTestCase):
    def test_unknown_key(self) -> None:
        """An unknown key is refused with the nearest known one, of its own table or of another."""
        self.assertEqual(self.refused("turn_prot = 1"), "turn_prot: unknown key, did you mean turn_port?")
        self.assertEqual(
            self.refused("[turn]\nrelay_prots = [1, 2]"),
            "turn.relay_prots: unknown key, did you mean turn.relay_ports?",
        )
        self.assertEqual(
            self.refused("credential_ttl = 5"), "credential_ttl: unknown key, did you mean turn.credential_ttl?"
        )
        self.assertEqual(self.refused("[zzz]\na = 1"), "zzz: unknown key")

    def test_key_twice(self) -> None:
        """The two spellings of one key do not stand side by side."""
        self.assertEqual(self.refused("turn-port = 1\nturn_port = 2"), "turn_port: stands there twice")

    def test_types(self) -> None:
        """A value of the wrong type is refused, and nothing is guessed from its text."""
        for text, why in (
            ('turn_port = "3478"', "turn_port: must be a whole number"),
            ("turn_port = true", "turn_port: must be a whole number"),
            ("turn_port = 1.0", "turn_port: must be a whole number"),
            ("public_ip = 1", "public_ip: must be a text"),
            ('http = "tcp:6001"', "http: must be a list"),
            ("http = [1]", "http: must be a text"),
            ("turn = 1", "turn: must be a table [turn]"),
            ("[turn]\nrelay_ports = [50000]", "turn.relay_ports: must be a list of 2"),
            ("[turn]\noffload = 1", "turn.offload: must be true or false"),
            ("[sfu]\nresume_timeout = inf", "sfu.resume_timeout: must be a number"),
            ("data_dir = 1", "data_dir: must be a path"),
        ):
            self.assertEqual(self.refused(text), why)

    def test_values(self) -> None:
        """Addresses, networks, ranges and names are checked one by one."""
        for text, why in (
            ("turn_port = 70000", "turn_port: 70000 is not between 0 and 65535"),
            ('public_ip = "localhost"', "public_ip: 'localhost' is not an IP address"),
            ('internal_ip = "0.0.0.0"', "internal_ip: 0.0.0.0 is every address; one address is needed"),
            ('internal_ip = "::"', "internal_ip: :: is every address; one address is needed"),
            ("http = []", "http: needs at least one endpoint"),
            ('log_format = "xml"', "log_format: 'xml' is neither text nor json"),
            ('base_domain = "a b"', "base_domain: 'a b' is not a domain name in lower case"),
            ("[turn]\nrelay_ports = [60000, 50000]", "turn.relay_ports: 60000–50000 is no range of ports"),
            ('[turn]\nallowed_peers = ["10.0.0.1/8"]', "turn.allowed_peers: 10.0.0.1/8 has host bits set"),
            ('[turn]\ndenied_peers = ["x"]', "turn.denied_peers: 'x' does not appear to be an IPv4 or IPv6 network"),
            ('[turn]\nproxy_protocol_from = ["::1/64"]', "turn.proxy_protocol_from: ::1/64 has host bits set"),
            (
                '[turn]\nalternate_servers = ["turn.example:3478"]',
                "turn.alternate_servers: 'turn.example:3478' is no address and port (10.0.0.1:53)",
            ),
            (
                '[turn.namespaces.a]\nallowed_peers = ["10.0.0.1/8"]',
                "turn.namespaces.a.allowed_peers: 10.0.0.1/8 has host bits set",
            ),
            (
                "[turn.namespaces.a]\nallocations_per_user = 0",
                "turn.namespaces.a.allocations_per_user: 0 is not between 1 and 1000000",
            ),
            (
                '[turn.namespaces.a]\nallocations_per_user = "1"',
                "turn.namespaces.a.allocations_per_user: must be a whole number",
            ),
            (
                "[turn.namespaces.a]\nallocation_per_user = 1",
                "turn.namespaces.a.allocation_per_user: unknown key, did you mean "
                "turn.namespaces.a.allocations_per_user?",
            ),
            ("[turn]\nnamespaces = 1", "turn.namespaces: must be tables [turn.namespaces.NAME]"),
            ("[turn.namespaces]\na = 1", "turn.namespaces: must be tables [turn.namespaces.NAME]"),
            ('[turn.namespaces."A\\nB"]', "turn.namespaces: 'A B' is not a name of a namespace"),
            (
                '[webhooks]\nurl = "ftp://a/"',
                "webhooks.url: 'ftp://a/' is not an address to post to (https://app.example/hook)",
            ),
            (
                '[webhooks]\nsecret = "hunter2"',
                "webhooks.secret: must be 32 or more printable characters of ASCII",
            ),
            (
                '[webhooks.namespaces.a]\nevents = ["room_stared"]',
                "webhooks.namespaces.a.events: 'room_stared' is none of room_started, room_finished, "
                "participant_joined, participant_left, track_published, track_unpublished",
            ),
            ('[limits]\norigins = ["a.b"]', "limits.origins: 'a.b' is not an origin (scheme://host[:port]) or *"),
        ):
            self.assertEqual(self.refused(text), why)

    def test_conflicts(self) -> None:
        """Values that are fine alone but not together are refused as well."""
        for text, why in (
            ("turns_port = 3478", "turns_port: 3478 is turn_port as well"),
            (
                "[sfu]\nmedia_ports = [40000, 50000]",
                "sfu.media_ports: 40000–50000 overlaps turn.relay_ports 49152–65535",
            ),
            ("turn_port = 20000", "sfu.media_ports: 20000–29999 holds turn_port 20000"),
            ("turns_port = 30000", "signaling.ports: 30000–30099 holds turns_port 30000"),
            ("[sfu]\nmedia_block = 20000", "sfu.media_block: 20000 is more than the 10000 ports of its range"),
            ("[sfu]\nworkers = 2", 'sfu.workers: 2 is for cluster.runner = "processes" only'),
            (
                '[sfu]\nworkers = 0\n[cluster]\nrunner = "systemd"',
                'sfu.workers: 0 is for cluster.runner = "processes" only',
            ),
            (
                '[sfu]\nworkers = 3\nmedia_block = 2\n[cluster]\nrunner = "processes"',
                "sfu.workers: 3 is more than the ports of a media_block",
            ),
            ('[turn]\ncertificate = "a"', "turn.private_key: certificate and private_key go together"),
            ('[webhooks]\nurl = "https://a/b?c=d"', "webhooks.secret: url and secret go together"),
            (
                '[webhooks.namespaces.a]\nurl = "https://a"',
                "webhooks.namespaces.a.secret: url and secret go together",
            ),
        ):
            self.assertEqual(self.refused(text), why)

    def test_option(self) -> None:
        """What is wrong with an option is said of the option."""
        error = self.assertRaises(ConfigurationError, load, None, {"internal_ip": "0.0.0.0"})
        self.assertEqual(error.message, "--internal-ip: 0.0.0.0 is every address; one address is needed")

    def test_files(self) -> None:
        """A file that is not there, or is not TOML, is named with the reason."""
        missing = Path(self.mktemp())
        error = self.assertRaises(ConfigurationError, load, missing)
        self.assertEqual(error.message, f"{missing}: cannot be read: No such file or directory")
        self.assertIn("is not TOML: ", self.refused("a ="))
        binary = Path(self.mktemp())
        binary.write_bytes(b"\xff\xfe")
        self.assertIn("is not TOML", self.assertRaises(ConfigurationError, load, binary).message)


def _value(settings: Settings, key: str) -> object:
    value: object = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value
