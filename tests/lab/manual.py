"""The commands of docs/operate.rst, read from the page: each literal block that has a comment ``.. lab: …`` before it.

``first`` is run on node 1, ``each`` on every node with its number in ``N``, both line by line as a shell reads them;
``in the background: NAME`` leaves it running; ``copy FILE`` takes a file of node 1 to the others. What else a
label says is for whoever reads the blocks.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path

from attrs import frozen

from tests.lab.machine import Machine, Process
from tests.lab.servers import TOP

PAGE = TOP / "docs" / "operate.rst"
_BLOCK = re.compile(r"^\.\. lab: (?P<label>.+)\n\n(?:::\n\n(?P<text>(?:    .*\n|\n)+))?", re.MULTILINE)
#: Directories of which every machine has its own.
_OWN = ("/etc", "/var/lib")


@frozen
class Block:
    label: str
    text: str

    @property
    def background(self) -> str:
        """The name of what keeps running; empty when nothing does."""
        return self.label.partition("in the background: ")[2]

    @property
    def copied(self) -> str:
        """The file that is copied; empty when there is none."""
        return self.label[len("copy ") :] if self.label.startswith("copy ") else ""


def blocks(page: Path = PAGE) -> list[Block]:
    """In the order of the page."""
    found = _BLOCK.finditer(page.read_text())
    return [Block(each["label"], textwrap.dedent(each["text"] or "").strip() + "\n") for each in found]


def furnish(machine: Machine) -> None:
    """Let the machine have /etc and /var/lib of its own, which begin as the host's but for names."""
    names = {file: machine.run("cat", file) for file in ("/etc/hosts", "/etc/resolv.conf")}
    for place in _OWN:
        own = machine.directory / place.strip("/").replace("/", "_")
        for part in ("upper", "work"):
            (own / part).mkdir(parents=True)
        layers = f"lowerdir={place},upperdir={own}/upper,workdir={own}/work"
        machine.run("mount", "-t", "overlay", "overlay", "-o", layers, place)
    for file, content in names.items():
        machine.run("sh", "-c", 'rm -f "$0" && cat > "$0"', file, stdin=content)


def missing(directory: Path) -> str:
    """Why a machine cannot have directories of its own here; empty when it can."""
    probe = Machine("probe", "overlay", directory)
    try:
        probe.boot()
        furnish(probe)
    except (OSError, AssertionError) as error:
        return f"no overlay here: {error}"
    finally:
        probe.off()
        shutil.rmtree(directory, ignore_errors=True)
    return ""


class Reader:
    """Does what the page says, on these machines."""

    def __init__(self, machines: list[Machine], environment: dict[str, str]) -> None:
        self._machines = machines
        self._environment = [f"{name}={value}" for name, value in environment.items()]
        self._environment.append("ORAMA_DATA_DIR=/var/lib/orama")
        self.running: dict[str, list[Process]] = {}

    def do(self, block: Block, **words: str) -> list[str]:
        """What it printed, a machine each; *words* are put in the place of others."""
        if block.copied:
            content = self._machines[0].run("cat", block.copied)
            for machine in self._machines[1:]:
                machine.run("sh", "-c", 'umask 077; cat > "$0"', block.copied, stdin=content)
            return []
        text = block.text
        for word, value in words.items():
            text = text.replace(word, value)
        machines = self._machines[:1] if block.label.startswith("first") else self._machines
        if block.background:
            self.running[block.background] = [
                machine.spawn(block.background, *self._shell(number, f"exec {text}"))
                for number, machine in enumerate(machines, 1)
            ]
            return []
        return [machine.run(*self._shell(number, text), seconds=120) for number, machine in enumerate(machines, 1)]

    def _shell(self, number: int, text: str) -> list[str]:
        return ["env", *self._environment, f"N={number}", "bash", "-euo", "pipefail", "-c", text]
