"""The command line in this process, against whatever answers at the control socket of a directory."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from click.testing import CliRunner, Result
from twisted.internet.threads import deferToThread
from twisted.python.filepath import FilePath
from twisted.trial.unittest import TestCase

from orama.cli.main import main


class CommandCase(TestCase):
    """:ivar dir: the data directory that commands are given."""

    timeout = 240

    async def setUp(self) -> None:
        # Unix socket addresses are short, trial's directories are not.
        self.dir = Path(mkdtemp(prefix="orama-cli-"))
        self.addCleanup(FilePath(str(self.dir)).remove)

    async def run_it(self, *arguments: str, data_dir: Path | None = None) -> Result:
        """Run the command in a thread, as the node needs this one."""
        where = ["--data-dir", str(data_dir or self.dir)]
        result: Result = await deferToThread(CliRunner().invoke, main, [*arguments, *where])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    async def good(self, *arguments: str) -> str:
        result = await self.run_it(*arguments)
        self.assertEqual((result.exit_code, result.stderr), (0, ""))
        return result.stdout

    async def data(self, *arguments: str) -> Any:
        return json.loads(await self.good(*arguments, "--json"))

    async def bad(self, *arguments: str, data_dir: Path | None = None) -> str:
        """One line on stderr, nothing on stdout, exit code 1."""
        result = await self.run_it(*arguments, data_dir=data_dir)
        self.assertEqual((result.exit_code, result.stdout), (1, ""))
        self.assertEqual(result.stderr.count("\n"), 1)
        self.assertTrue(result.stderr.startswith("orama: "))
        return result.stderr
