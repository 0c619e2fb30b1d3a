"""One machine of the lab: network, mount, process and host-name namespaces, held by one sleeping process.

Everything that runs in there ends with that process, and with the last one of them the kernel takes back the
mounts, links and addresses: to clean up is to kill the holders, which are known by their names.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

#: Seconds for what has to come true in the lab unless somebody says otherwise.
PATIENCE = 90.0
#: What the name of every holder begins with; then come the lab's and the machine's.
PREFIX = "orama-lab"
_CLONE_NEWNET = 0x40000000
#: Nothing on /run is anybody else's. The signal is ignored so that orphans leave no zombies.
_HOLD = 'mount -t tmpfs tmpfs /run && mkdir /run/lock && ip link set lo up && hostname "$1" && echo up && %s'
_SLEEP = 'trap "" CHLD && exec -a "$0" sleep infinity'

T = TypeVar("T")


def until(reached: Callable[[], T], what: str, seconds: float = PATIENCE, pause: float = 0.05) -> T:
    """What *reached* answers once that is true; programs of others tell nobody when."""
    deadline = time.monotonic() + seconds
    while not (answer := reached()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)
    return answer


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def holders(lab: str = "") -> dict[str, int]:
    """Holding processes by name: those of one lab, or of all."""
    return {words[0]: pid for pid, words in _processes(lab) if words[0].startswith(PREFIX)}


def remains(lab: str) -> list[int]:
    """Holding processes of a lab, and those that are about to become one."""
    return [pid for pid, _ in _processes(lab)]


def _processes(lab: str) -> Iterator[tuple[int, list[str]]]:
    """Processes with the name of a machine among their words."""
    wanted = f"{PREFIX}-{lab}-" if lab else f"{PREFIX}-"
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            with contextlib.suppress(OSError):
                words = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
                own = words[0].startswith(wanted) or words[0] in ("unshare", "bash")
                if own and any(word.startswith(wanted) for word in words):
                    yield int(directory.name), words


class Process:
    """A program that runs in a machine.

    :ivar log: the file with its stdout and stderr.
    """

    def __init__(self, name: str, outer: subprocess.Popen[Any], log: Path) -> None:
        self.name, self.log = name, log
        self.outer = outer
        self._pid = 0

    @property
    def pid(self) -> int:
        """As the host counts; nsenter is its parent."""
        if not self._pid:
            children = Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children")
            found = until(lambda: children.read_text().split() or self.outer.poll() is not None, f"{self.name} runs")
            if found is True:
                raise AssertionError(f"{self.name} ended at once: {self.said()}")
            self._pid = int(found[0])
        return self._pid

    @property
    def running(self) -> bool:
        return self.outer.poll() is None

    def signal(self, number: int) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> float:
        """SIGKILL; the time (monotonic) at which it was sent."""
        now = time.monotonic()
        self.signal(signal.SIGKILL)
        self.outer.wait(PATIENCE)
        return now

    def stop(self, seconds: float = PATIENCE) -> int:
        """SIGTERM, and the exit status."""
        self.signal(signal.SIGTERM)
        return self.outer.wait(seconds)

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_for(self, text: str, seconds: float = PATIENCE, start: int = 0) -> None:
        """Return once its log has *text* after position *start*; fail when it ends before that."""

        def reached() -> bool:
            ended = not self.running
            if text in self.said()[start:]:
                return True
            assert not ended, f"{self.name} ended: {self.said()[-2000:]}"
            return False

        until(reached, f"{self.name} says {text!r}: {self.log}", seconds)


class Machine:
    """:param lab: name of the lab. :param directory: of this machine, on the host and in here alike."""

    def __init__(self, lab: str, name: str, directory: Path, pid: int = 0) -> None:
        self.name, self.directory = name, directory
        self.full_name = f"{PREFIX}-{lab}-{name}"
        #: The holder's; 0 while the machine is off.
        self.pid = pid

    def boot(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        unshare = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
        starting = subprocess.Popen(
            [*unshare, "bash", "-c", _HOLD % _SLEEP, self.full_name, self.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        assert starting.stdout is not None and starting.stderr is not None
        with starting.stdout, starting.stderr:
            if starting.stdout.readline() != "up\n":
                raise OSError(f"no machine here: {starting.stderr.read().strip()}")
        self.pid = until(lambda: holders().get(self.full_name), f"{self.name} is up")
        self._unshare = starting

    def off(self) -> None:
        """Pull the plug: every process in it ends, without a chance to say so."""
        if self.pid and alive(self.pid):
            os.kill(self.pid, signal.SIGKILL)
            until(lambda: not alive(self.pid), f"{self.name} is off")
        if hasattr(self, "_unshare"):
            self._unshare.wait(PATIENCE)
        self.pid = 0

    def run(
        self, *command: str, check: bool = True, stdin: str | None = None, host_pids: bool = False, seconds: float = 60
    ) -> str:
        """What *command* prints; with stderr when it fails.

        :param host_pids: stay in the host's mounts and process numbers: only the network is the machine's.
        """
        done = self.complete(*command, stdin=stdin, host_pids=host_pids, seconds=seconds)
        if check and done.returncode:
            raise AssertionError(
                f"{self.name}: {' '.join(command)}: {done.returncode}: {done.stdout}{done.stderr}".strip()
            )
        return done.stdout

    def complete(
        self, *command: str, stdin: str | None = None, host_pids: bool = False, seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*(self.enter("--net") if host_pids else self.enter()), *command],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    def spawn(self, name: str, *command: str, env: Mapping[str, str] | None = None, **more: Any) -> Process:
        """Start *command* in its own session, in the machine's directory; it goes on when we end.

        :param more: of Popen, instead of a log file for its output.
        """
        log = self.directory / f"{name}.log"
        streams = {"stdin": subprocess.DEVNULL, "stdout": log.open("ab"), "stderr": subprocess.STDOUT, **more}
        place = ["env", f"--chdir={self.directory}"]
        process = subprocess.Popen(
            [*self.enter(), *place, *command],
            env=None if env is None else {**os.environ, **env},
            start_new_session=True,
            **streams,
        )
        return Process(f"{self.name}/{name}", process, log)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread makes sockets in this machine while it lasts; a socket stays where it was made."""
        libc = ctypes.CDLL(None, use_errno=True)
        with (
            open("/proc/thread-self/ns/net", "rb") as home,
            open(f"/proc/{self.pid}/ns/net", "rb") as there,
        ):
            self._setns(libc, there.fileno())
            try:
                yield
            finally:
                self._setns(libc, home.fileno())

    def connect(self, host: str, port: int, seconds: float = 5.0) -> socket.socket:
        """A TCP connection from here to an address."""
        with self.inside():
            made = socket.socket()
        made.settimeout(seconds)
        try:
            made.connect((host, port))
        except BaseException:
            made.close()
            raise
        return made

    def bind_mount(self, path: str, content: str | None = None) -> Path:
        """Let this machine have a file or directory of its own at *path*: a copy of the host's, or *content*."""
        own = self.directory / path.strip("/").replace("/", "_")
        if content is None:
            subprocess.run(["cp", "-a", path, str(own)], check=True)
        else:
            own.write_text(content)
        self.run("mount", "--bind", str(own), path)
        return own

    def enter(self, namespaces: str = "--net --mount --uts --pid") -> list[str]:
        """What to put before a command so that it runs in here."""
        return ["nsenter", "--target", str(self.pid), *namespaces.split(), "--"]

    @staticmethod
    def _setns(libc: ctypes.CDLL, descriptor: int) -> None:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def missing() -> str:
    """Why there can be no machines here, tried for real; empty when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--", "mount", "-t", "tmpfs"]
    try:
        done = subprocess.run([*probe, "tmpfs", "/run"], capture_output=True, text=True)
    except OSError as error:
        return f"unshare is not here: {error}"
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else ""
