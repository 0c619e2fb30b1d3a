"""The servers that orama is measured against, started from Debian's packages, and what they cost."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

SECRET = "north"


class Server:
    """A process that is up when *port* takes a connection, and gone when the block ends."""

    def __init__(self, command: list[str], log: Path, port: tuple[str, int] | None = None) -> None:
        if shutil.which(command[0]) is None:
            raise FileNotFoundError(f"{command[0]} is not installed")
        self._command, self._log, self._port = command, log, port

    def __enter__(self) -> Server:
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(self._command, stdout=out, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while self._port is not None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._command[0]} did not start:\n{self._log.read_text()[-2000:]}")
            try:
                socket.create_connection(self._port, 0.2).close()
                break
            except OSError:
                time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def cpu(self) -> float:
        """Seconds of CPU that the process has used, threads that ended included, in steps of 10 ms."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes resident."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def coturn(
    directory: Path,
    address: str,
    port: int,
    *,
    relay_ports: tuple[int, int] = (50000, 52000),
    tls: tuple[int, Path, Path] | None = None,
    threads: int | None = None,
) -> Server:
    """coturn with a shared secret, relaying on *address*.

    :param tls: port, certificate and key of a TLS listener.
    :param threads: how many relay; None leaves it to coturn, which takes one for each CPU of the machine.
    """
    configuration = directory / "turnserver.conf"
    secured = "no-tls\n" if tls is None else "tls-listening-port={}\ncert={}\npkey={}\n".format(*tls)
    more = secured if threads is None else f"{secured}relay-threads={threads}\n"
    configuration.write_text(
        f"listening-port={port}\nlistening-ip={address}\nrelay-ip={address}\nuse-auth-secret\n"
        f"static-auth-secret={SECRET}\nrealm=orama\nno-cli\n{more}no-dtls\nallow-loopback-peers\n"
        f"min-port={relay_ports[0]}\nmax-port={relay_ports[1]}\nlog-file=stdout\nsimple-log\n"
        f"pidfile={directory}/turnserver.pid\nuserdb={directory}/turndb\n"
    )
    return Server(["turnserver", "-c", str(configuration)], directory / "coturn.log", (address, port))


def janus(directory: Path, port: int, address: str = "127.0.0.1") -> Server:
    """Janus with the VideoRoom over WebSockets on *address*, logging little."""
    configuration = directory / "janus"
    configuration.mkdir()
    modules = next(Path("/usr/lib").glob("*/janus"), Path("/usr/lib/janus"))
    (configuration / "janus.jcfg").write_text(
        f'general: {{ configs_folder = "{configuration}" plugins_folder = "{modules}/plugins"\n'
        f'transports_folder = "{modules}/transports" events_folder = "{modules}/events"\n'
        f'loggers_folder = "{modules}/loggers" debug_level = 3 }}\n'
        'nat: { ice_ignore_list = "vmnet" }\n'
        "media: { no_media_timer = 30 }\n"
        'plugins: { disable = "libjanus_audiobridge.so,libjanus_duktape.so,libjanus_echotest.so,libjanus_lua.so,'
        "libjanus_nosip.so,libjanus_recordplay.so,libjanus_sip.so,libjanus_streaming.so,libjanus_textroom.so,"
        'libjanus_videocall.so,libjanus_voicemail.so" }\n'
        'transports: { disable = "libjanus_http.so,libjanus_mqtt.so,libjanus_nanomsg.so,libjanus_pfunix.so,'
        'libjanus_rabbitmq.so" }\n'
    )
    (configuration / "janus.transport.websockets.jcfg").write_text(
        f'general: {{ ws = true ws_port = {port} ws_ip = "{address}" }}\nadmin: {{ admin_ws = false }}\n'
    )
    (configuration / "janus.plugin.videoroom.jcfg").write_text("general: { }\n")
    return Server(["janus", "-F", str(configuration)], directory / "janus.log", (address, port))
