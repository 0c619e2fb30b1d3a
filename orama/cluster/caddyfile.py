"""Our blocks in a Caddyfile that belongs to somebody else: text in, text out, and a write that keeps the rest.

A block makes Caddy obtain and renew the certificate of one TURN host. It stands between two marker lines that
name the host; nothing outside of markers is changed, and a block that is put in and taken out again leaves the
very bytes that were there. What Caddy makes of the file is not known here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from orama.errors import ConfigurationError

#: A host name that can stand in a Caddyfile: letters, digits and inner hyphens, at least two labels (RFC 1123, 2.1).
HOST = re.compile(r"(?=.{4,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")

_MARKER = re.compile(r"\s*# (?P<edge>BEGIN|END) TURN CERT: (?P<host>\S+)\s*\Z")
#: What a site address may have around its host name.
_AROUND = re.compile(r"[\s,{}]+")
_ADDRESS = re.compile(r"(?:https?://)?(?P<host>[^/:]+)(?::\d+)?(?:/.*)?\Z")


def is_host(name: str) -> bool:
    """Whether a certificate can be asked for *name*; addresses and names of one label are none."""
    return HOST.match(name) is not None


def render(host: str, tls: str) -> str:
    """The block of *host*, without a newline at its end.

    :param tls: what stands inside ``tls { }``; without it Caddy does as its global options say.
    """
    if not is_host(host):
        raise ConfigurationError(f"{host!r} is not the name of a host")
    if any(_MARKER.match(line) for line in tls.split("\n")):
        raise ConfigurationError("certificates.caddy_tls: has one of our markers in it")
    inside = [f"\t\t{line.strip()}" for line in tls.split("\n") if line.strip()]
    return "\n".join(
        [
            f"# BEGIN TURN CERT: {host}",
            f"{host} {{",
            *(["\ttls {", *inside, "\t}"] if inside else []),
            "\trespond 404",
            "}",
            f"# END TURN CERT: {host}",
        ]
    )


def blocks(text: str) -> Mapping[str, str]:
    """Host → the block that is there, markers and all.

    :raises ConfigurationError: a marker stands alone, so that what is ours cannot be told.
    """
    lines = text.split("\n")
    return {host: "\n".join(lines[first : last + 1]) for host, first, last in _found(lines)}


def put(text: str, host: str, tls: str) -> str:
    """*text* with the block of *host* at its end, or in the place of the one that is there."""
    block = render(host, tls).split("\n")
    lines = text.split("\n")
    found = [(first, last) for name, first, last in _found(lines) if name == host]
    if not found:
        # The last element is what follows the last newline: mostly nothing.
        at = len(lines) - 1 if lines[-1] == "" else len(lines)
        return "\n".join([*lines[:at], *block, *lines[at:]])
    for first, last in reversed(found[1:]):
        del lines[first : last + 1]
    first, last = found[0]
    lines[first : last + 1] = block
    return "\n".join(lines)


def take(text: str, hosts: Collection[str]) -> str:
    """*text* without the blocks of *hosts*."""
    lines = text.split("\n")
    for host, first, last in reversed(_found(lines)):
        if host in hosts:
            del lines[first : last + 1]
    return "\n".join(lines)


def mentions(text: str, host: str) -> bool:
    """Whether somebody else's part of *text* has *host* as the address of a site."""
    for line in take(text, blocks(text)).split("\n"):
        code = line.partition("#")[0]
        for word in _AROUND.split(code):
            address = _ADDRESS.match(word)
            if address is not None and address["host"].lower() == host:
                return True
    return False


def read(file: Path) -> str:
    """Any bytes, so that they can be written back as they were.

    :raises ConfigurationError: the file cannot be read.
    """
    try:
        return file.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None


def write(file: Path, text: str) -> None:
    """Replace the file in one step; owner, group and mode stay, and a symbolic link goes on pointing to it.

    :raises ConfigurationError: it cannot be written; then it is as it was.
    """
    target = Path(os.path.realpath(file))
    new = target.with_name(f".{target.name}.orama")
    try:
        status = target.stat()
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(text.encode("utf-8", "surrogateescape"))
                stream.flush()
                if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(stream.fileno(), status.st_uid, status.st_gid)
                os.fchmod(stream.fileno(), status.st_mode & 0o7777)
                os.fsync(stream.fileno())
            new.replace(target)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None


def _found(lines: list[str]) -> list[tuple[str, int, int]]:
    """Host, first and last line of every block, in order."""
    found: list[tuple[str, int, int]] = []
    begun: tuple[str, int] | None = None
    for number, line in enumerate(lines):
        marker = _MARKER.match(line)
        if marker is None:
            continue
        host = marker["host"]
        if marker["edge"] == "BEGIN":
            if begun is not None:
                raise ConfigurationError(f"line {begun[1] + 1}: # BEGIN TURN CERT: {begun[0]} has no END")
            begun = host, number
        elif begun is None or begun[0] != host:
            raise ConfigurationError(f"line {number + 1}: # END TURN CERT: {host} has no BEGIN")
        else:
            found.append((host, begun[1], number))
            begun = None
    if begun is not None:
        raise ConfigurationError(f"line {begun[1] + 1}: # BEGIN TURN CERT: {begun[0]} has no END")
    return found
