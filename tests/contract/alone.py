"""A node with a machine to itself: run inside a network namespace, it prints what an outsider finds, as JSON.

``python -m tests.contract.alone DIRECTORY [OPTION…]``
"""

from __future__ import annotations

import json
import signal
import stat
import struct
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from urllib.request import urlopen

from tests.node import READY, TWISTD, environment

#: State of a listening socket in /proc/net/tcp; UDP has but one.
_LISTENING = {"tcp": "0A", "udp": "07"}


def listeners() -> list[str]:
    """Every bound port, as ``udp 127.0.0.1 3478``."""
    found = set()
    for protocol, state in _LISTENING.items():
        for suffix in ("", "6"):
            for line in Path(f"/proc/net/{protocol}{suffix}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == state:
                    ip, _, port = fields[1].partition(":")
                    words = [ip[at : at + 8] for at in range(0, len(ip), 8)]
                    packed = b"".join(struct.pack("=I", int(word, 16)) for word in words)
                    found.add(f"{protocol} {ip_address(packed)} {int(port, 16)}")
    return sorted(found)


def main(directory: Path, *options: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    command = [TWISTD, "-n", "--pidfile=", "orama-webrtc", *options]
    node = subprocess.Popen(command, cwd=directory, env=environment(), stdout=subprocess.PIPE, text=True)
    assert node.stdout is not None
    try:
        output = []
        for line in node.stdout:
            output.append(line.rstrip("\n"))
            if READY in line:
                break
        bound = listeners()
        with urlopen("http://127.0.0.1:6001/health") as answer:
            health = json.loads(answer.read())
        data = next(path for path in directory.iterdir() if path.is_dir())
        modes = {str(path.relative_to(directory)): oct(stat.S_IMODE(path.stat().st_mode)) for path in data.rglob("*")}
        modes[data.name] = oct(stat.S_IMODE(data.stat().st_mode))
    finally:
        node.send_signal(signal.SIGTERM)
    output += node.stdout.read().splitlines()
    facts = {"listeners": bound, "health": health, "modes": modes, "output": output, "status": node.wait()}
    print(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
