"""A certificate authority of the lab's own, pebble, on the Internet; and lego, which gets certificates from it."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography import x509

from tests.lab import addresses
from tests.lab.machine import Machine
from tests.lab.servers import program

_PORT, _MANAGEMENT = 14000, 15000
HOST = f"acme.{addresses.DOMAIN}"


class Authority:
    """Pebble, which asks the cluster's DNS servers and nobody else."""

    def __init__(self, internet: Machine, resolver: str) -> None:
        from tests.browser.certificates import issue

        self._machine = internet
        issued = issue(internet.directory / "authority", HOST)
        self.trust = issued.authority
        configuration = internet.directory / "pebble.json"
        own = f"{addresses.PUBLIC}.{addresses.ROUTER}"
        configuration.write_text(
            json.dumps(
                {
                    "pebble": {
                        "listenAddress": f"{own}:{_PORT}",
                        "managementListenAddress": f"{own}:{_MANAGEMENT}",
                        "certificate": str(issued.certificate),
                        "privateKey": str(issued.private_key),
                        "httpPort": 80,
                        "tlsPort": 443,
                    }
                }
            )
        )
        self.process = internet.spawn(
            "pebble",
            program("pebble"),
            "-config",
            str(configuration),
            "-dnsserver",
            f"{resolver}:53",
            env={"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"},
        )
        self.process.wait_for("Listening on")

    def issue(
        self, node: Machine, endpoint: str, password: str, directory: Path, name: str, renew: bool = False
    ) -> Path:
        """Let lego, on *node*, prove by DNS that *name* is ours; the certificate's file.

        :param endpoint: of the httpreq provider. :param directory: lego's own.
        """
        environment = {
            "LEGO_CA_CERTIFICATES": str(self.trust),
            "HTTPREQ_ENDPOINT": endpoint,
            "HTTPREQ_USERNAME": "orama",
            "HTTPREQ_PASSWORD": password,
            "HTTPREQ_POLLING_INTERVAL": "1",
        }
        assignments = [f"{key}={value}" for key, value in environment.items()]
        options = [
            "--accept-tos",
            "--email",
            f"hostmaster@{addresses.DOMAIN}",
            "--server",
            f"https://{HOST}:{_PORT}/dir",
        ]
        options += ["--path", str(directory), "--dns", "httpreq", "--dns.disable-cp", "--dns.resolvers"]
        options += [f"{addresses.public(1)}:53", "--domains", name]
        action = ["renew", "--days", "100000", "--no-random-sleep"] if renew else ["run"]
        node.run("env", *assignments, program("lego"), *options, *action, seconds=90)
        return directory / "certificates" / f"{name}.crt"


def serial(certificate: Path | bytes) -> int:
    """The serial number of a PEM certificate, the first of its file."""
    pem = certificate if isinstance(certificate, bytes) else certificate.read_bytes()
    return x509.load_pem_x509_certificate(pem).serial_number
