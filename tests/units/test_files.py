"""What the unit files promise."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.units.files import INSTALLED, NAMES, UNITS, UnitFile

#: Highest exposure of ``systemd-analyze security``; up to 2 it says OK, up to 1 SAFE.
EXPOSURE = {NAMES[0]: 2.0, NAMES[1]: 2.0, NAMES[2]: 1.0}


class UnitTests(SynchronousTestCase):
    def analyze(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``systemd-analyze`` on copies of the files in which the programs are those that are here."""
        if shutil.which("systemd-analyze") is None:
            raise SkipTest("systemd-analyze is not installed")
        directory = Path(mkdtemp(prefix="orama-"))
        self.addCleanup(shutil.rmtree, directory)
        here = f"{Path(sys.executable).parent}/"
        for name in NAMES:
            text = (UNITS / name).read_text()
            self.assertIn(INSTALLED, text)
            (directory / name).write_text(text.replace(INSTALLED, here))
        command = ["systemd-analyze", *arguments]
        return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)

    def test_verify(self) -> None:
        """systemd finds nothing to say against them."""
        done = self.analyze("verify", "--man=no", *(f"./{name}" for name in NAMES))
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_exposure(self) -> None:
        """They may do little of what they do not need."""
        for name, highest in EXPOSURE.items():
            done = self.analyze("security", "--offline=true", "--no-pager", f"./{name}")
            found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
            assert found is not None, done
            self.assertLessEqual(float(found[1]), highest)

    def test_restart_of_the_node(self) -> None:
        """A restart of the node stops no unit of a namespace: they want it and come after it, and nothing else."""
        for name in NAMES[1:]:
            unit = UnitFile(name)["Unit"]
            self.assertEqual(unit["Wants"], NAMES[0])
            self.assertIn(NAMES[0], unit["After"].split())
            binding = {
                "Requires",
                "Requisite",
                "BindsTo",
                "PartOf",
                "Upholds",
                "PropagatesStopTo",
                "StopPropagatedFrom",
            }
            self.assertEqual(binding & set(unit), set())

    def test_signs_of_life(self) -> None:
        """All three say when they are ready, are watched, and come again when they fail, however often."""
        for name in NAMES:
            unit = UnitFile(name)
            self.assertEqual(unit["Service"]["Type"], "notify")
            self.assertGreater(int(unit["Service"]["WatchdogSec"]), 0)
            self.assertEqual(unit["Service"]["Restart"], "on-failure")
            self.assertEqual(unit["Unit"]["StartLimitIntervalSec"], "0")

    def test_one_data_directory(self) -> None:
        """All three mean the same data directory, and the namespace is the instance as it stands."""
        for name in NAMES:
            self.assertIn("--data-dir /var/lib/orama", UnitFile(name)["Service"]["ExecStart"])
        for name in NAMES[1:]:
            self.assertIn("--namespace %i ", UnitFile(name)["Service"]["ExecStart"])
