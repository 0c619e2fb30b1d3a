"""Caddy in front of a gateway: https for browsers, and the test pages beside the node's own under ``/pages/``."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.browser.files import CLIENT
from tests.browser.page import PAGES
from tests.lab import addresses
from tests.lab.machine import Machine, Process
from tests.lab.node import GATEWAY_PORT
from tests.lab.servers import program

_CADDYFILE = """{
	storage file_system %(directory)s/caddy
	skip_install_trust
	admin localhost:2019
}
%(site)s {
	tls internal
	handle_path /pages/* {
		root * %(directory)s/pages
		file_server
	}
	handle {
		reverse_proxy 127.0.0.1:%(gateway)d
	}
}
"""


def caddy(machine: Machine, number: int) -> Process:
    """Running, with a certificate of its own making; the Caddyfile is the one that the node is told of."""
    pages = machine.directory / "pages"
    shutil.copytree(CLIENT, pages)
    shutil.copytree(PAGES, pages, dirs_exist_ok=True)
    values = {"directory": machine.directory, "site": addresses.site(number), "gateway": GATEWAY_PORT}
    caddyfile = Path(machine.directory / "Caddyfile")
    caddyfile.write_text(_CADDYFILE % values)
    running = machine.spawn(
        "caddy",
        program("caddy"),
        "run",
        "--config",
        str(caddyfile),
        "--adapter",
        "caddyfile",
        env={"HOME": str(machine.directory), "XDG_DATA_HOME": str(machine.directory)},
    )
    running.wait_for("serving initial configuration")
    return running
