"""The wires: two networks that a router joins, and WireGuard between the nodes."""

from __future__ import annotations

import shutil
import subprocess

from tests.lab import addresses
from tests.lab.machine import Machine, Process, until

#: The kernel's own WireGuard is not needed: wireguard-go runs on a tun device.
_PORT = 51820


def connect(internet: Machine, nodes: list[Machine], clients: list[Machine]) -> None:
    """Cables from each machine to the bridge of its network, addresses, and default routes through the router."""
    for bridge, prefix in (("public", addresses.PUBLIC), ("homes", addresses.HOMES)):
        internet.run("ip", "link", "add", bridge, "type", "bridge")
        internet.run("ip", "address", "add", f"{prefix}.{addresses.ROUTER}/24", "dev", bridge)
        internet.run("ip", "link", "set", bridge, "up")
    internet.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    for number, machine in enumerate(nodes, 1):
        _plug(internet, machine, "public", addresses.public(number))
    for number, machine in enumerate(clients, 1):
        _plug(internet, machine, "homes", addresses.home(number))
    for machine in (internet, *nodes, *clients):
        machine.bind_mount("/etc/hosts", addresses.hosts())
        machine.bind_mount("/etc/resolv.conf", addresses.resolvers())


def _plug(internet: Machine, machine: Machine, bridge: str, address: str) -> None:
    cable = ["ip", "link", "add", machine.name, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid)]
    internet.run(*cable, host_pids=True)
    internet.run("ip", "link", "set", machine.name, "master", bridge, "up")
    machine.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    machine.run("ip", "link", "set", "eth0", "up")
    router = f"{address.rpartition('.')[0]}.{addresses.ROUTER}"
    machine.run("ip", "route", "add", "default", "via", router)


def wireguard_missing() -> str:
    """Why there is no WireGuard here; empty when there is."""
    lacking = [name for name in ("wireguard-go", "wg") if not shutil.which(name)]
    return f"{' and '.join(lacking)} not installed" if lacking else ""


def mesh(nodes: list[Machine]) -> list[Process]:
    """WireGuard between *nodes*; returns when each has reached the others through it."""
    keys = [_keys() for _ in nodes]
    running = []
    for number, machine in enumerate(nodes, 1):
        # It opens its tun device before it says anything, and its socket for wg last.
        running.append(machine.spawn("wireguard", "wireguard-go", "--foreground", "wg0"))
        until(lambda machine=machine: not machine.complete("wg", "show", "wg0").returncode, "wireguard-go is up")  # type: ignore[misc]
        private = machine.directory / "wireguard.key"
        private.touch(0o600)
        private.write_text(keys[number - 1][0])
        peers: list[str] = []
        for other, (_, key) in enumerate(keys, 1):
            if other != number:
                peers += ["peer", key, "allowed-ips", f"{addresses.mesh(other)}/32"]
                peers += ["endpoint", f"{addresses.public(other)}:{_PORT}"]
        machine.run("wg", "set", "wg0", "private-key", str(private), "listen-port", str(_PORT), *peers)
        machine.run("ip", "address", "add", f"{addresses.mesh(number)}/24", "dev", "wg0")
        machine.run("ip", "link", "set", "mtu", "1420", "up", "dev", "wg0")
    for number, machine in enumerate(nodes, 1):
        for other in range(1, number):
            until(lambda pair=(machine, other): reaches(pair[0], addresses.mesh(pair[1])), "WireGuard carries")  # type: ignore[misc]
    return running


def reaches(machine: Machine, address: str) -> bool:
    """Whether *address* answers *machine* at all: no port is open there, and the answer is that it is not."""
    try:
        machine.connect(address, 9, seconds=2.0).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def _keys() -> tuple[str, str]:
    private = subprocess.run(["wg", "genkey"], check=True, capture_output=True, text=True).stdout.strip()
    made = subprocess.run(["wg", "pubkey"], input=private, check=True, capture_output=True, text=True)
    return private, made.stdout.strip()
