"""``python -m tests.lab up|down|status|exec``: the lab for people.

``up`` returns when everything runs, ``exec MACHINE COMMAND …`` runs a command in it (a shell without), ``down`` leaves
nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests.lab.lab import Lab, labs


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="Three nodes on one machine.")
    parser.add_argument("--name", default="lab", help="of the lab, when there are several")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="bring it up")
    commands.add_parser("down", help="take it away")
    commands.add_parser("status", help="say what runs in which machine")
    inside = commands.add_parser("exec", help="run a command in a machine")
    inside.add_argument("machine")
    inside.add_argument("words", nargs=argparse.REMAINDER)
    asked = parser.parse_args(arguments)
    lab = Lab(asked.name)
    if asked.command == "up":
        return _up(lab)
    if asked.command == "down":
        lab.down()
        return 0
    if asked.command == "status":
        return _status(lab)
    machine = lab.machine(asked.machine)
    if not machine.pid:
        print(f"{machine.name} is off", file=sys.stderr)
        return 1
    given = {**lab.environment(), "ORAMA_DATA_DIR": str(machine.directory / "data")}
    place = ["env", f"--chdir={machine.directory}", *(f"{name}={value}" for name, value in given.items())]
    return subprocess.run([*machine.enter(), *place, *(asked.words or ["bash"])]).returncode


def _up(lab: Lab) -> int:
    lacking = lab.lacking()
    for piece, reason in lacking.items():
        print(f"without {piece}: {reason}", file=sys.stderr)
    if "machines" in lacking or "WireGuard" in lacking:
        return 1
    lab.up()
    try:
        lab.start_nodes()
    except BaseException:
        lab.down()
        raise
    print(f"lab {lab.name} is up, in {lab.directory}")
    return _status(lab)


def _status(lab: Lab) -> int:
    for machine in lab.machines:
        running = "off"
        if machine.pid:
            names = machine.run("ps", "-A", "--no-headers", "-o", "comm").split()
            running = " ".join(sorted(set(names) - {"ps", "sleep", "nsenter"})) or "on"
        print(f"{machine.name}: {running}")
    for name in set(labs()) - {lab.name}:
        print(f"another lab: {name}")
    return 0 if all(machine.pid for machine in lab.machines) else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main(sys.argv[1:]))
