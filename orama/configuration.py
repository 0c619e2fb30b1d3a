"""From a TOML file and command-line options to :class:`orama.settings.Settings`.

Whatever is wrong becomes one :class:`ConfigurationError` of one line that names the file (or the
option), the key and why; an unknown key also names the nearest known one. ``settings.load`` is the
door to all of this.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from re import compile as pattern
from typing import Any, TypeVar, get_args, get_origin

import attrs
from cattrs import ClassValidationError, Converter, IterableValidationError
from cattrs.gen import make_dict_structure_fn

from orama.errors import ConfigurationError

T = TypeVar("T")

_HOSTNAME = pattern(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
_ORIGIN = pattern(r"\*|[a-z][a-z0-9+.-]*://(\[[0-9a-fA-F:]+\]|[^/\s:@?#]+)(:\d{1,5})?")
_URL = pattern(r"https?://([^/\s:@?#]+:[^/\s@?#]+@)?(\[[0-9a-fA-F:]+\]|[^/\s:@?#]+)(:\d{1,5})?/?")
_SERVICE = pattern(r"([^\s@]+@)?(\[[0-9a-fA-F:]+\]|[^/\s:@?#]+):\d{1,5}")
_NAMESPACE = pattern(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_HOOK = pattern(r"https?://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(:\d{1,5})?(/[!$-;=?-Z_a-z~]*)?")
#: Where the keys of ``[turn.namespaces.NAME]`` and of ``[webhooks.namespaces.NAME]`` are.
_NAMESPACES = pattern(r"(turn|webhooks)\.namespaces\.[^.]*\.(\w+)")
#: What webhooks can be told (``sfu.occurrences``).
EVENTS = (
    *("room_started", "room_finished", "participant_joined", "participant_left"),
    *("track_published", "track_unpublished"),
)
#: Characters of the shortest secret: 128 bits, where each has 4.
SHORTEST_SECRET = 32


class _Wrong(ValueError):
    """A value of the wrong type or out of its range; the text says why."""


# -- types -------------------------------------------------------------------------------------


def _named(kind: type, name: str) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
            raise _Wrong(f"must be {name}")
        return value

    return structure


def _number(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _Wrong("must be a number")
    return float(value)


def _path(value: Any, _: Any) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise _Wrong("must be a path")
    return Path(value)


def _tuple(value: Any, kind: Any) -> tuple[Any, ...]:
    inner = get_args(kind)
    if not isinstance(value, (list, tuple)):
        raise _Wrong("must be a list")
    if inner[-1] is not Ellipsis and len(value) != len(inner):
        raise _Wrong(f"must be a list of {len(inner)}")
    kinds = inner if inner[-1] is not Ellipsis else [inner[0]] * len(value)
    return tuple(_CONVERTER.structure(item, each) for item, each in zip(value, kinds, strict=True))


def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    converter.register_structure_hook(int, _named(int, "a whole number"))
    converter.register_structure_hook(str, _named(str, "a text"))
    converter.register_structure_hook(bool, _named(bool, "true or false"))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(Path, _path)
    converter.register_structure_hook_func(lambda kind: str(get_origin(kind)) == str(tuple), _tuple)
    converter.register_structure_hook_factory(
        attrs.has, lambda kind: make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)
    )
    return converter


_CONVERTER = _converter()


# -- ranges ------------------------------------------------------------------------------------

DAY = 86400
#: Least and most of every number; a test holds the keys against the settings.
RANGES: Mapping[str, tuple[float, float]] = {
    "turn_port": (0, 65535),
    "turns_port": (0, 65535),
    "turn.relay_block": (1, 65535),
    "turn.credential_ttl": (1, 30 * DAY),
    "turn.max_lifetime": (1, DAY),
    "turn.max_age": (1, 30 * DAY),
    "turn.allocations_per_user": (1, 1_000_000),
    "turn.allocations_per_namespace": (1, 1_000_000),
    "turn.bandwidth_per_user": (0, 1 << 40),
    "turn.bandwidth_per_namespace": (0, 1 << 40),
    "turn.unauthenticated_rate": (1, 1_000_000),
    "turn.unauthenticated_burst": (1, 1_000_000),
    "turn.unauthenticated_prefix_rate": (1, 1_000_000),
    "turn.unauthenticated_prefix_burst": (1, 1_000_000),
    "turn.unauthenticated_amplification": (1, 100),
    "turn.nonce_lifetime": (1, DAY),
    "turn.coalescing": (0, 0.01),
    "turn.workers": (0, 64),
    "sfu.media_block": (1, 65535),
    "sfu.max_participants": (1, 10_000),
    "sfu.empty_room_timeout": (0, DAY),
    "sfu.resume_timeout": (0, 3600),
    "sfu.media_timeout": (1, 3600),
    "sfu.offer_timeout": (0.1, 60),
    "sfu.max_bitrate": (0, 1_000_000_000),
    "sfu.max_estimate": (0, 1_000_000_000),
    "sfu.loudest": (0, 64),
    "sfu.max_tracks": (1, 64),
    "sfu.workers": (0, 64),
    "signaling.max_frame": (1024, 16 << 20),
    "signaling.message_rate": (1, 100_000),
    "signaling.message_burst": (1, 100_000),
    "signaling.join_timeout": (0.1, 3600),
    "signaling.ping_interval": (0, 3600),
    "signaling.ping_timeout": (0.1, 3600),
    "signaling.send_queue": (65536, 1 << 30),
    "signaling.drain_deadline": (0, DAY),
    "limits.max_body": (1024, 64 << 20),
    "limits.request_rate": (1, 1_000_000),
    "limits.request_burst": (1, 1_000_000),
    "auth.max_token_ttl": (1, 365 * DAY),
    "cluster.port": (0, 65535),
    "cluster.heartbeat": (0.1, 60),
    "cluster.replace_after": (0, DAY),
    "cluster.sfu_nodes": (1, 100),
    "cluster.turn_nodes": (1, 100),
    "certificates.caddy_timeout": (1, 3600),
    "webhooks.timeout": (0.1, 60),
    "webhooks.retry": (0.01, 60),
    "webhooks.keep": (0, 30 * DAY),
}


def _ip(value: str) -> None:
    try:
        address = ip_address(value)
    except ValueError:
        raise _Wrong(f"{value!r} is not an IP address") from None
    if address.is_unspecified:
        raise _Wrong(f"{value} is every address; one address is needed")


def _ip6(value: str) -> None:
    _ip(value)
    if ip_address(value).version != 6:
        raise _Wrong(f"{value} is not an IPv6 address")


def _network(value: str) -> None:
    try:
        ip_network(value)
    except ValueError as error:
        raise _Wrong(str(error)) from None


def _ports(value: tuple[int, int]) -> None:
    first, last = value
    if not 1 <= first <= last <= 65535:
        raise _Wrong(f"{first}–{last} is no range of ports")


def _matching(expression: Any, what: str) -> Callable[[str], None]:
    def check(value: str) -> None:
        if not expression.fullmatch(value):
            raise _Wrong(f"{value!r} is not {what}")

    return check


def _each(check: Callable[[Any], None]) -> Callable[[Any], None]:
    def check_all(values: Any) -> None:
        for value in values:
            check(value)

    return check_all


def _optional(check: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda value: check(value) if value else None


def _some(values: tuple[str, ...]) -> None:
    if not values:
        raise _Wrong("needs at least one endpoint")


def _one_of(*choices: str) -> Callable[[str], None]:
    def check(value: str) -> None:
        if value not in choices:
            raise _Wrong(f"{value!r} is none of {', '.join(choices)}")

    return check


def _log_format(value: str) -> None:
    if value not in ("text", "json"):
        raise _Wrong(f"{value!r} is neither text nor json")


def _place(value: str) -> None:
    """An address and a port."""
    host, _, port = value.rpartition(":")
    if not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise _Wrong(f"{value!r} is no address and port (10.0.0.1:53)")
    try:
        ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise _Wrong(f"{value!r} is no address and port (10.0.0.1:53)") from None


def _namespaces(value: Mapping[str, Any]) -> None:
    for name in value:
        if not _NAMESPACE.fullmatch(name):
            raise _Wrong(f"{_line(name)!r} is not a name of a namespace")


def _secret(value: str) -> None:
    if len(value) < SHORTEST_SECRET or not value.isprintable() or not value.isascii():
        raise _Wrong(f"must be {SHORTEST_SECRET} or more printable characters of ASCII")


CHECKS: Mapping[str, Callable[[Any], None]] = {
    "http": _some,
    "public_ip": _ip,
    "internal_ip": _ip,
    "base_domain": _optional(_matching(_HOSTNAME, "a domain name in lower case")),
    "log_format": _log_format,
    "turn.relay_ip": _optional(_ip),
    "turn.relay_ip6": _optional(_ip6),
    "turn.relay_ports": _ports,
    "turn.allowed_peers": _each(_network),
    "turn.denied_peers": _each(_network),
    "turn.namespaces": _namespaces,
    "turn.proxy_protocol_from": _each(_network),
    "turn.alternate_servers": _each(_place),
    "sfu.media_ports": _ports,
    "sfu.relay_addresses": _each(_ip),
    "signaling.ports": _ports,
    "cluster.url": _optional(_matching(_URL, "an address of a site (https://n1.example)")),
    "cluster.runner": _one_of("inline", "processes", "systemd"),
    "cluster.rqlite": _optional(_matching(_URL, "an address of a site (http://10.0.0.1:4001)")),
    "cluster.olric": _optional(_matching(_SERVICE, "a host and port (10.0.0.1:3320)")),
    "cluster.gateway": _optional(_matching(_URL, "an address of a site (http://10.0.0.1:6001)")),
    "dns.listen": _optional(_place),
    "dns.nameservers": _each(_matching(_HOSTNAME, "a domain name in lower case")),
    "dns.contact": _optional(_matching(_HOSTNAME, "a domain name in lower case")),
    "firewall.ufw": _one_of("auto", "off", "require"),
    "webhooks.url": _optional(_matching(_HOOK, "an address to post to (https://app.example/hook)")),
    "webhooks.secret": _optional(_secret),
    "webhooks.events": _each(_one_of(*EVENTS)),
    "webhooks.namespaces": _namespaces,
    "limits.origins": _each(_matching(_ORIGIN, "an origin (scheme://host[:port]) or *")),
}


def _leaves(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for attribute in attrs.fields(type(settings)):
        value = getattr(settings, attribute.name)
        if attrs.has(type(value)):
            yield from _leaves(value, f"{prefix}{attribute.name}.")
            continue
        yield prefix + attribute.name, value
        if isinstance(value, Mapping):
            for name, inner in value.items():
                yield from _leaves(inner, f"{prefix}{attribute.name}.{name}.")


def _check(key: str, value: Any) -> None:
    if (named := _NAMESPACES.fullmatch(key)) is not None:  # held to the same as what it stands for
        if value is None:
            return
        key = f"{named[1]}.{named[2]}"
    if key in RANGES:
        least, most = RANGES[key]
        if not least <= value <= most:
            raise _Wrong(f"{value} is not between {least} and {most}")
    if key in CHECKS:
        CHECKS[key](value)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _conflicts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, why) for values that are fine alone but not together."""
    udp, tcp = values["turn_port"], values["turns_port"]
    relay, media, signaling = values["turn.relay_ports"], values["sfu.media_ports"], values["signaling.ports"]
    if udp and udp == tcp:
        yield "turns_port", f"{tcp} is turn_port as well"
    if _overlap(relay, media):
        yield "sfu.media_ports", f"{media[0]}–{media[1]} overlaps turn.relay_ports {relay[0]}–{relay[1]}"
    for key, ports in (("turn.relay_ports", relay), ("sfu.media_ports", media), ("signaling.ports", signaling)):
        if udp and _overlap(ports, (udp, udp)):
            yield key, f"{ports[0]}–{ports[1]} holds turn_port {udp}"
        if tcp and ports is signaling and _overlap(ports, (tcp, tcp)):
            yield key, f"{ports[0]}–{ports[1]} holds turns_port {tcp}"
    for key, ports in (("turn.relay_block", relay), ("sfu.media_block", media)):
        size = ports[1] - ports[0] + 1
        if values[key] > size:
            yield key, f"{values[key]} is more than the {size} ports of its range"
    if values["sfu.workers"] != 1 and values["cluster.runner"] != "processes":
        yield "sfu.workers", f'{values["sfu.workers"]} is for cluster.runner = "processes" only'
    if values["sfu.workers"] > values["sfu.media_block"]:
        yield "sfu.workers", f"{values['sfu.workers']} is more than the ports of a media_block"
    if bool(values["turn.certificate"]) != bool(values["turn.private_key"]):
        missing = "turn.private_key" if values["turn.certificate"] else "turn.certificate"
        yield missing, "certificate and private_key go together"
    if values["webhooks.url"] and not values["webhooks.secret"]:
        yield "webhooks.secret", "url and secret go together"
    for name in values["webhooks.namespaces"]:
        own = f"webhooks.namespaces.{name}"
        if values[f"{own}.url"] and not (values[f"{own}.secret"] or values["webhooks.secret"]):
            yield f"{own}.secret", "url and secret go together"


# -- one line for whatever is wrong ------------------------------------------------------------


def _line(text: object) -> str:
    return " ".join(str(text).split())


def _first(error: BaseException, path: str = "") -> tuple[str, str]:
    """The path and the reason of the first leaf of a tree of cattrs errors."""
    if isinstance(error, (ClassValidationError, IterableValidationError)):
        inner = error.exceptions[0]
        for note in getattr(inner, "__notes__", ()):
            name = getattr(note, "name", None) or getattr(note, "index", None)
            if isinstance(name, str):
                path = f"{path}.{name}" if path else str(name)
        return _first(inner, path)
    return path, _line(error)


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: is not TOML: {_line(error)}") from None


def keys(kind: type, prefix: str = "") -> Iterator[str]:
    """The dotted name of every value that *kind* holds."""
    for attribute in attrs.fields(attrs.resolve_types(kind)):
        inner = attribute.type
        if isinstance(inner, type) and attrs.has(inner):
            yield from keys(inner, f"{prefix}{attribute.name}.")
        else:
            yield prefix + attribute.name


def _hint(key: str, names: Iterable[str], known: Iterable[str]) -> str:
    """The nearest known key: of the same table first, else of any."""
    prefix, _, name = key.rpartition(".")
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f", did you mean {prefix + '.' if prefix else ''}{near[0]}?"
    elsewhere = {each.rpartition(".")[2]: each for each in known}
    near = difflib.get_close_matches(name, elsewhere, n=1)
    return f", did you mean {elsewhere[near[0]]}?" if near else ""


def _tables_of(kind: Any) -> type | None:
    """The kind of the tables in a table of named ones, None where *kind* is none of these."""
    inner = get_args(kind)[-1] if get_origin(kind) is Mapping else None
    return inner if isinstance(inner, type) and attrs.has(inner) else None


def _spelled(
    table: Mapping[str, Any], kind: type, origin: str, known: Iterable[str], prefix: str = ""
) -> dict[str, Any]:
    """*table* with every key as the attribute of *kind* that it names, ``-`` and ``_`` alike."""
    fields = {attribute.name: attribute.type for attribute in attrs.fields(attrs.resolve_types(kind))}
    result: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in fields:
            hint = _hint(prefix + name, fields, known)
            raise ConfigurationError(f"{origin}: {_line(prefix + key)}: unknown key{hint}")
        if name in result:
            raise ConfigurationError(f"{origin}: {prefix}{name}: stands there twice")
        inner = fields[name]
        if isinstance(inner, type) and attrs.has(inner):
            if not isinstance(value, dict):
                raise ConfigurationError(f"{origin}: {prefix}{name}: must be a table [{name}]")
            value = _spelled(value, inner, origin, known, f"{prefix}{name}.")
        elif (named := _tables_of(inner)) is not None:
            if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
                raise ConfigurationError(f"{origin}: {prefix}{name}: must be tables [{prefix}{name}.NAME]")
            value = {
                each: _spelled(inside, named, origin, known, f"{prefix}{name}.{_line(each)}.")
                for each, inside in value.items()
            }
        result[name] = value
    return result


def read(kind: type[T], file: Path | None, options: Mapping[str, Any]) -> T:
    """*kind* from *file* and *options*; what stands in *options* wins.

    :raises ConfigurationError: see the module.
    """
    table = _spelled(_read(file), kind, str(file), list(keys(kind))) if file is not None else {}

    def refuse(key: str, why: str) -> ConfigurationError:
        if key in options:
            return ConfigurationError(f"--{key.replace('_', '-')}: {why}")
        return ConfigurationError(f"{file or 'configuration'}: {key}: {why}")

    try:
        settings = _CONVERTER.structure({**table, **options}, kind)
    except (ClassValidationError, IterableValidationError) as error:
        raise refuse(*_first(error)) from None
    values = dict(_leaves(settings))
    for key, value in values.items():
        try:
            _check(key, value)
        except _Wrong as error:
            raise refuse(key, str(error)) from None
    for key, why in _conflicts(values):
        raise refuse(key, why)
    return settings
