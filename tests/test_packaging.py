"""The installed distribution, where orama is installed and not imported from a checkout."""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from subprocess import run

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import orama
from orama import __version__
from tests.packaging import INSTALLED, misplaced, missing


class InstalledTests(SynchronousTestCase):
    distribution: Distribution

    def setUp(self) -> None:
        try:
            self.distribution = distribution("orama-webrtc")
        except PackageNotFoundError:
            raise SkipTest("orama is imported from a checkout") from None

    def test_files(self) -> None:
        """The wheel brings the plugin, the pages and the migrations, and nothing that belongs to the checkout."""
        names = [str(file) for file in self.distribution.files or ()]
        self.assertEqual(missing(INSTALLED, names), [])
        self.assertEqual(misplaced(names), [])

    def test_tested_is_installed(self) -> None:
        """What is tested is what was installed."""
        self.assertEqual(Path(orama.__file__), Path(str(self.distribution.locate_file("orama/__init__.py"))))

    def test_metadata(self) -> None:
        """Version, floor and command are those of the source."""
        self.assertEqual(self.distribution.version, __version__)
        self.assertEqual(self.distribution.metadata["Requires-Python"], ">=3.11")
        scripts = {
            entry.name: entry.value for entry in self.distribution.entry_points if entry.group == "console_scripts"
        }
        self.assertEqual(scripts, {"orama": "orama.cli.main:main"})

    def test_commands(self) -> None:
        """``twistd`` offers the service, and ``orama`` runs."""
        tools = Path(sys.executable).parent
        listed = run([tools / "twistd", "--help"], capture_output=True, text=True)
        self.assertIn("orama-webrtc", listed.stdout)
        told = run([tools / "orama", "--help"], capture_output=True, text=True)
        self.assertEqual((told.returncode, told.stderr), (0, ""))
        self.assertIn("namespace", told.stdout)
