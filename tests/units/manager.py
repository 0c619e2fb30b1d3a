"""A manager of units for one node: it answers a ``systemctl`` on the node's path, and runs real processes.

What it runs is what the files in ``etc/systemd`` say, with other directories. Of systemd it has what a node relies on:
jobs that wait for what they come after, ``Type=notify``, ``Restart=on-failure``, ``--no-block``, and the states that
``systemctl show`` tells. What the files say of sandboxes and limits is not in here.
"""

from __future__ import annotations

import json
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from threading import Condition, Thread

from twisted.trial.unittest import SynchronousTestCase

from tests.contract.stage import toml
from tests.node import NodeProcess, environment
from tests.ports import free_port
from tests.units.files import INSTALLED, NAMES, UnitFile

NODE = NAMES[0]
#: What stands in the files for the state of a node.
DATA = "/var/lib/orama"
#: Seconds for anything to become true here.
PATIENCE = 90.0
#: Signals that end a process well (systemd.service(5), SuccessExitStatus=).
_CLEAN = {0, -signal.SIGHUP, -signal.SIGINT, -signal.SIGPIPE, -signal.SIGTERM}
#: All that a unit has of our environment is what finds orama and these tests.
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": environment()["PYTHONPATH"]}
_SYSTEMCTL = """#!{python} -IS
import json, socket, sys
with socket.socket(socket.AF_UNIX) as manager:
    manager.connect({address!r})
    manager.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
    status, output = json.loads(manager.makefile().readline())
sys.stdout.write(output)
sys.exit(status)
"""


class _Notices:
    """What one process tells: a socket in *directory*, read on a thread until it is closed."""

    def __init__(self, directory: Path, name: str, take: Callable[[str], None]) -> None:
        self.address = str(directory / f"{name}.notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._take = take
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        # Whoever reads datagrams is woken by one more.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.address)
        self._thread.join()
        self._socket.close()
        Path(self.address).unlink()

    def _read(self) -> None:
        while datagram := self._socket.recv(4096):
            for line in datagram.decode().split("\n"):
                self._take(line)


class Unit:
    """One unit that has been started at least once. All is guarded by the manager's condition.

    :ivar starts: how many processes it has had. :ivar pid: of the one that it has; 0 for none.
    """

    def __init__(self, manager: Manager, name: str, file: UnitFile) -> None:
        self.name = name
        self.active, self.sub, self.result = "inactive", "dead", "success"
        self.status = ""
        self.starts = self.pid = 0
        self._manager = manager
        self._file = file
        self._job = False
        self._stopping = self._again = False
        self._process: subprocess.Popen[bytes] | None = None
        self._changed = manager.changed
        self.thread: Thread | None = None

    @property
    def journal(self) -> list[str]:
        """The lines of all its processes."""
        file = self._manager.directory / f"{self.name}.journal"
        return file.read_text().splitlines() if file.exists() else []

    def start(self) -> None:
        if self._job or self.active in ("active", "activating"):
            return
        if self.active == "deactivating":
            self._again = True
            return
        self._job, self._stopping = True, False
        self.thread = Thread(target=self._run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self._again = False
        if self._job or self.active in ("active", "activating"):
            self._stopping = True
            if self._process is not None:
                self._become("deactivating", "stop-sigterm")
                self._process.send_signal(getattr(signal, self._file.service("KillSignal")))
        self._changed.notify_all()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _run(self) -> None:
        with self._changed:
            while True:
                while not self._stopping and self._manager.node == "activating" and NODE in self._file.after:
                    self._changed.wait()
                self._job = False
                ended = "success" if self._stopping else self._life()
                if self._stopping or ended == "success":
                    self._become(*(("inactive", "dead") if ended == "success" else ("failed", "failed")), ended)
                    if not self._again:
                        return
                    self._again = self._stopping = False
                    continue
                self._become("activating", "auto-restart", ended)
                self._changed.wait_for(lambda: self._stopping, float(self._file.service("RestartSec")))

    def _life(self) -> str:
        """One process, from its beginning to its end; the result."""
        directory = self._manager.directory
        notices = _Notices(directory, f"{self.name}.{self.starts}", self._told)
        watchdog = str(int(self._file.service("WatchdogSec")) * 1_000_000)
        told = {"HOME": str(self._manager.data), "NOTIFY_SOCKET": notices.address, "WATCHDOG_USEC": watchdog}
        command = shlex.split(self._manager.here(self._file.service("ExecStart")))
        with (directory / f"{self.name}.journal").open("ab") as journal:
            self._process = subprocess.Popen(
                command,
                cwd=self._manager.here(self._file.service("WorkingDirectory")),
                umask=int(self._file.service("UMask"), 8),
                env={**_ENVIRONMENT, **told},
                stdin=subprocess.DEVNULL,
                stdout=journal,
                stderr=subprocess.STDOUT,
            )
        self.starts, self.pid = self.starts + 1, self._process.pid
        self._become("activating", "start")
        self._changed.release()
        try:
            status = self._process.wait()
            notices.close()
        finally:
            self._changed.acquire()
        was_ready, self._process, self.pid = self.active == "active", None, 0
        if status in _CLEAN:
            return "success" if was_ready or self._stopping else "protocol"
        return "signal" if status < 0 else "exit-code"

    def _told(self, line: str) -> None:
        with self._changed:
            if line == "READY=1" and self.active == "activating":
                self._become("active", "running")
            elif line == "STOPPING=1" and self.active == "active":
                self._become("deactivating", "stop-sigterm")
            elif line.startswith("STATUS="):
                self.status = line.partition("=")[2]
                self._changed.notify_all()

    def _become(self, active: str, sub: str, result: str | None = None) -> None:
        self.active, self.sub = active, sub
        self.result = self.result if result is None else result
        self._changed.notify_all()


class Manager:
    """
    :ivar node: ``ActiveState`` of the node's own unit. :ivar verbs: what ``systemctl`` was asked for, with the unit.
    """

    def __init__(self, case: SynchronousTestCase) -> None:
        # Not in trial's directory: the address of a Unix socket has 108 bytes.
        self.directory = Path(mkdtemp(prefix="orama-"))
        case.addCleanup(rmtree, self.directory)
        self.data = self.directory / "node" / "data"
        self.changed = Condition()
        self.node = "inactive"
        self.verbs: list[tuple[str, ...]] = []
        #: What ``start`` and ``stop`` fail with; empty when they do not.
        self.refuses = ""
        self._units: dict[str, Unit] = {}
        self._notices = _Notices(self.directory, NODE, self._told)
        case.addCleanup(self._notices.close)
        self._server = socket.socket(socket.AF_UNIX)
        address = str(self.directory / "manager.sock")
        self._server.bind(address)
        self._server.listen()
        program = self.directory / "bin" / "systemctl"
        program.parent.mkdir()
        program.write_text(_SYSTEMCTL.format(python=sys.executable, address=address))
        program.chmod(0o755)
        self._acceptor = Thread(target=self._accept, daemon=True)
        self._acceptor.start()
        case.addCleanup(self._end)

    def unit(self, name: str) -> Unit:
        """:raises FileNotFoundError: there is no file for it."""
        if name not in self._units:
            self._units[name] = Unit(self, name, UnitFile(name))
        return self._units[name]

    def until(self, reached: Callable[[], object], what: str) -> None:
        """Wait for something that becomes true when a unit changes."""
        with self.changed:
            if not self.changed.wait_for(reached, PATIENCE):
                units = [(each.name, each.active, each.sub, each.result) for each in self._units.values()]
                raise AssertionError(f"{what}: {units} {[each.journal for each in self._units.values()]}")

    def here(self, text: str) -> str:
        """*text* of a unit file with the directories of this test."""
        return text.replace(INSTALLED, f"{Path(sys.executable).parent}/").replace(DATA, str(self.data))

    def begun(self) -> str:
        """The process of the node begins; the address where it says how it goes."""
        with self.changed:
            self.node = "activating"
        return self._notices.address

    # ---- systemctl

    def answer(self, arguments: list[str]) -> tuple[int, str]:
        """Exit status and output of one ``systemctl``."""
        options = dict(each.partition("=")[::2] for each in arguments if each.startswith("--"))
        verb, *names = (each for each in arguments if not each.startswith("--"))
        with self.changed:
            self.verbs.append((verb, *names))
            if verb == "list-units":
                return 0, self._list(options["--state"].split(","), names)
            try:
                unit = self.unit(names[0])
            except FileNotFoundError:
                return 5, f"Failed to {verb} {names[0]}: Unit {names[0]} not found.\n"
            if verb == "show":
                values = {"Result": unit.result, "ActiveState": unit.active, "SubState": unit.sub}
                wanted = options["--property"].split(",")
                return 0, "".join(f"{name}={value}\n" for name, value in values.items() if name in wanted)
            if verb == "is-active":
                return (0 if unit.active in ("active", "reloading") else 3), f"{unit.active}\n"
            if verb == "reset-failed":
                if unit.active == "failed":
                    unit.active, unit.sub, unit.result = "inactive", "dead", "success"
                return 0, ""
            if self.refuses:
                return 1, f"{self.refuses}\n"
            if verb not in ("start", "stop"):
                return 1, f"Unknown command verb {verb}.\n"
            settled = {"start": ("active", "failed"), "stop": ("inactive", "failed")}[verb]
            unit.start() if verb == "start" else unit.stop()
            if "--no-block" not in options:
                self.changed.wait_for(lambda: unit.active in settled)
            return 0, ""

    def _list(self, states: list[str], patterns: list[str]) -> str:
        shown = (
            f"{each.name} loaded {each.active} {each.sub} a unit of these tests\n"
            for name, each in sorted(self._units.items())
            if each.active in states and any(fnmatch(name, pattern) for pattern in patterns)
        )
        return "".join(shown)

    def _accept(self) -> None:
        while True:
            connection, _ = self._server.accept()
            with connection, connection.makefile() as asked:
                line = asked.readline()
                if not line:
                    return
                Thread(target=self._serve, args=(connection.dup(), json.loads(line)), daemon=True).start()

    def _serve(self, connection: socket.socket, arguments: list[str]) -> None:
        with connection:
            connection.sendall(json.dumps(self.answer(arguments)).encode())

    # ---- the node

    def _told(self, line: str) -> None:
        with self.changed:
            self.node = {"READY=1": "active", "STOPPING=1": "deactivating"}.get(line, self.node)
            self.changed.notify_all()

    def _end(self) -> None:
        with self.changed:
            self.node = "inactive"
            units = [unit for unit in self._units.values() if unit.thread is not None]
            for unit in units:
                unit.stop()
                unit.kill()
        for unit in units:
            assert unit.thread is not None
            unit.thread.join(PATIENCE)
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self._server.getsockname())
        self._acceptor.join()
        self._server.close()


class UnitNode(NodeProcess):
    """The node of a manager: as ``orama-webrtc.service`` has it, with ports that are free.

    Its internal address is its own, since every node of a machine has the same ranges of ports.
    """

    def __init__(self, case: SynchronousTestCase, *options: str, cluster: str = "", **tables: str) -> None:
        self.manager = Manager(case)
        config = toml(cluster=f'runner = "systemd"\nheartbeat = 0.5\n{cluster}', **tables)
        # One port in the URIs is for UDP and TCP, so the kernel cannot choose one for each.
        self.turn_port = free_port()
        self.internal = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        given = "--turn-port", str(self.turn_port), "--internal-ip", self.internal, *options
        super().__init__(self.manager.data.parent, *given, config=config)
        ours = self._command[self._command.index("--turn-port") :]
        start = self.manager.here(UnitFile(NODE).service("ExecStart"))
        assert f"--data-dir {self.data}" in start
        self._unit_command = [*shlex.split(start.replace("/etc/orama/orama.toml", str(self.config))), *ours]
        case.addCleanup(self._gone)

    def launch(self) -> None:
        path = f"PATH={self.manager.directory / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        self._command = ["env", path, f"NOTIFY_SOCKET={self.manager.begun()}", *self._unit_command]
        super().launch()

    @property
    def node_id(self) -> str:
        return (self.data / "node.id").read_text().strip()

    def _gone(self) -> None:
        if hasattr(self, "process") and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            self._reader.join()


def until(reached: Callable[[], object], what: Callable[[], object]) -> None:
    """Wait for something that another process brings about, and tells nobody."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)
