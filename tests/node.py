"""A node as everybody runs it: ``twistd orama-webrtc`` in a process of its own, on ports that the kernel chooses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import orama
import tests

TWISTD = str(Path(sys.executable).with_name("twistd"))
#: Seconds within which a node is up, or gone.
PATIENCE = 120.0
READY = "orama is ready: "


def environment() -> dict[str, str]:
    """Ours, with the orama that is being tested, and these tests."""
    homes = (Path(package.__file__ or "").parent.parent for package in (orama, tests))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, homes)), "PYTHONUNBUFFERED": "1"}


class NodeProcess:
    """:param directory: where it runs and keeps its data; made when it is not there.

    :param config: TOML, after what is needed for ports that the kernel chooses.
    :param options: of ``orama-webrtc``, after ours.
    """

    def __init__(self, directory: Path, *options: str, config: str = "", twistd: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.data = directory / "data"
        directory.mkdir(parents=True, exist_ok=True)
        self.config = directory / "orama.toml"
        self.config.write_text(config)
        self._command = [TWISTD, *twistd, "-n", "--pidfile=", "orama-webrtc", "--config", str(self.config)]
        self._command += ["--data-dir", str(self.data), "--turn-port", "0", "--turns-port", "0"]
        if "--http" not in options:
            self._command += ["--http", "tcp:0:interface=127.0.0.1"]
        self._command += options

    def start(self) -> NodeProcess:
        """Start it, and wait until it is ready."""
        self.launch()
        self.url = self.wait_for(READY).partition(READY)[2].split('"')[0].strip()
        return self

    def launch(self) -> None:
        self._lines: Queue[str | None] = Queue()
        #: What it has said on stdout, as far as somebody waited for it.
        self.output: list[str] = []
        self.process = subprocess.Popen(
            self._command,
            cwd=self.directory,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=(self.directory / "stderr").open("w"),
            text=True,
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, text: str) -> str:
        """The next line of its log with *text* in it; fails when the process ends before that."""
        while True:
            try:
                line = self._lines.get(timeout=PATIENCE)
            except Empty:
                raise AssertionError(f"{text!r} was not said in {PATIENCE} s: {self.output} {self.errors}") from None
            if line is None:
                raise AssertionError(f"the node ended without {text!r}: {self.output} {self.errors}")
            self.output.append(line)
            if text in line:
                return line

    def wait(self) -> int:
        """Its exit status, once it is gone."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        self.said()
        return status

    def said(self) -> list[str]:
        """What it has said on stdout so far."""
        while not self._lines.empty():
            self.output += filter(None, [self._lines.get()])
        return self.output

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def errors(self) -> str:
        """What it has said on stderr."""
        return (self.directory / "stderr").read_text()

    @property
    def key(self) -> str:
        """The owner key of ``default``."""
        return (self.data / "default.api-key").read_text().strip()

    @property
    def authority(self) -> str:
        return urlsplit(self.url).netloc

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of the answer; with the owner key unless *headers* are given."""
        given = {"X-API-Key": self.key} if headers is None else dict(headers)
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"http://{self.authority}{path}", data, given, method=method)
        try:
            with urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read()
        except OSError as error:
            if not hasattr(error, "code"):
                raise
            return error.code, error.read()  # type: ignore[attr-defined]

    def credentials(self) -> dict[str, Any]:
        """TURN credentials of ``default``."""
        status, body = self.request("POST", "/v1/webrtc/turn/credentials")
        assert status == 200, body
        answer: dict[str, Any] = json.loads(body)
        return answer

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)
