"""The options of ``twistd orama-webrtc``, and the plugin that offers them."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.python.usage import UsageError
from twisted.scripts.twistd import ServerOptions
from twisted.trial.unittest import SynchronousTestCase

import orama
from orama.settings import Settings
from orama.tap import Options


def parsed(*arguments: str) -> Settings:
    options = Options()
    options.parseOptions(list(arguments))
    return options.settings


class OptionsTests(SynchronousTestCase):
    def refused(self, *arguments: str) -> str:
        return str(self.assertRaises(UsageError, parsed, *arguments))

    def test_defaults(self) -> None:
        """Without options the settings are the defaults of the contract."""
        settings = parsed()
        self.assertEqual(settings.data_dir, Path("orama-data").absolute())
        self.assertEqual(settings.database, "")
        self.assertEqual(settings.http, ("tcp:6001:interface=127.0.0.1",))
        self.assertEqual((settings.public_ip, settings.internal_ip), ("127.0.0.1", "127.0.0.1"))
        self.assertEqual((settings.turn_port, settings.turns_port), (3478, 5349))
        self.assertEqual((settings.base_domain, settings.realm), ("", "orama"))

    def test_every_option(self) -> None:
        """Every option of the contract is taken and reaches the settings."""
        settings = parsed(
            *("--data-dir", "/d", "--database", "sqlite:////d/x.db", "--public-ip", "192.0.2.1"),
            *("--internal-ip", "10.0.0.1", "--turn-port", "1", "--turns-port", "2", "--base-domain", "example.com"),
            *("--log-format", "json"),
        )
        self.assertEqual(str(settings.data_dir), "/d")
        self.assertEqual(settings.database, "sqlite:////d/x.db")
        self.assertEqual((settings.public_ip, settings.internal_ip), ("192.0.2.1", "10.0.0.1"))
        self.assertEqual((settings.turn_port, settings.turns_port), (1, 2))
        self.assertEqual((settings.base_domain, settings.realm), ("example.com", "example.com"))
        self.assertEqual(settings.log_format, "json")

    def test_http_repeats(self) -> None:
        """Several --http are several endpoints, in their order."""
        settings = parsed("--http", "tcp:1", "--http", "ssl:2:privateKey=k:certKey=c")
        self.assertEqual(settings.http, ("tcp:1", "ssl:2:privateKey=k:certKey=c"))

    def test_config(self) -> None:
        """--config names the file; an option wins over it, and reading again sees what changed in it."""
        file = Path(self.mktemp())
        file.write_text("turn_port = 1000\nturns_port = 1001\n")
        options = Options()
        options.parseOptions(["--config", str(file), "--turn-port", "2000"])
        self.assertEqual((options.settings.turn_port, options.settings.turns_port), (2000, 1001))
        file.write_text("turns_port = 1002\n")
        self.assertEqual((options.load().turn_port, options.load().turns_port), (2000, 1002))

    def test_refusals(self) -> None:
        """What is wrong is a UsageError of one line that names the option."""
        for arguments, why in (
            (["--turn-port", "x"], "--turn-port: must be a whole number"),
            (["--turn-port", "70000"], "--turn-port: 70000 is not between 0 and 65535"),
            (["--public-ip", "here"], "--public-ip: 'here' is not an IP address"),
            (["--internal-ip", "::"], "--internal-ip: :: is every address; one address is needed"),
            (["extra"], "'extra' is one argument too many"),
            (["--nope"], "option --nope not recognized"),
        ):
            self.assertEqual(self.refused(*arguments), why)

    def test_inside_twistd(self) -> None:
        """Inside twistd the same is one line and an exit, not twistd's pages of usage."""
        options = Options()
        options.parent = ServerOptions()
        exit_ = self.assertRaises(SystemExit, options.parseOptions, ["--turn-port", "x"])
        self.assertEqual(exit_.code, "orama-webrtc: --turn-port: must be a whole number")

    def test_help(self) -> None:
        """Every option is explained."""
        text = str(Options())
        for name in ("config", "data-dir", "database", "http", "public-ip", "internal-ip", "turn-port", "turns-port"):
            self.assertRegex(text, rf"--{name}=\s+[A-Z]")


class PluginTests(SynchronousTestCase):
    def test_found(self) -> None:
        """twistd finds the service by its name, with our options and makeService."""
        [maker] = [plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "orama-webrtc"]
        self.assertIs(maker.options, Options)
        self.assertEqual(maker.makeService.__module__, "orama.tap")

    def test_dropin_imports_nothing(self) -> None:
        """The dropin holds names only: importing it loads neither orama nor a reactor."""
        code = (
            "import sys, twisted.plugins.orama_dropin; "
            "print([n for n in sys.modules if n.split('.')[0] == 'orama' or n == 'twisted.internet.reactor'])"
        )
        top = str(Path(orama.__file__).parent.parent)
        done = run([sys.executable, "-c", code], env={"PYTHONPATH": top}, capture_output=True, text=True)
        self.assertEqual((done.stdout.strip(), done.stderr), ("[]", ""))

    def test_reactor_is_installed(self) -> None:
        """Importing the options where there is no reactor installs the asyncio one, on the current loop."""
        code = (
            "import orama.tap, asyncio; from twisted.internet import reactor; current = asyncio.get_event_loop(); "
            "print(type(reactor).__name__, reactor._asyncioEventloop is current)"
        )
        top = str(Path(orama.__file__).parent.parent)
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = run(command, env={"PYTHONPATH": top}, capture_output=True, text=True)
        self.assertEqual(done.stdout.strip(), "AsyncioSelectorReactor True", done.stderr)
