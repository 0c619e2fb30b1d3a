"""Session descriptions as WebRTC uses them: text ↔ values (RFC 8866, with the attributes that RFC 8829 lists).

:func:`parse` reads any text into a :class:`Session` or raises :class:`SdpError`, in time linear in its length;
:meth:`Session.serialise` writes one. The functions below read single attributes: codecs, header extensions, SSRCs,
rids, fingerprints, candidates. What a description means for a connection is not decided here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from attrs import field, frozen

#: Characters of a description. Signalling takes frames of 64 KiB; what we write may be longer.
MAX_SIZE = 262144
#: m-lines of a description: more than any room of ours needs on one connection.
MAX_MEDIA = 128
#: Characters of a mid: what fits a one-byte RTP header extension (RFC 8285, 4.2).
MAX_MID = 16
#: Characters of an identifier in msid (RFC 8830, 2) and of a rid that we take.
MAX_ID = 64
#: Characters of the name of a header extension; the longest that browsers use has 91.
MAX_URI = 256

DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")

#: Name and value; a flag has an empty value.
Attribute: TypeAlias = tuple[str, str]

_TOKEN = re.compile(r"[!#-'*+\-.0-9A-Z^-~]+")
_ICE_CHARS = re.compile(r"[A-Za-z0-9+/=_-]+")
_TEXT = re.compile(r"[\t -~]*")
_HEX = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2})+")


class SdpError(ValueError):
    """The text is no description, or an attribute in it is malformed."""


class Attributes:
    """The ``a=`` lines of one section, in order, found by name at once."""

    __slots__ = ("_index", "pairs")

    def __init__(self, pairs: Iterable[Attribute] = ()) -> None:
        self.pairs: tuple[Attribute, ...] = tuple(pairs)
        self._index: dict[str, list[str]] = {}
        for name, value in self.pairs:
            self._index.setdefault(name, []).append(value)

    def get(self, name: str) -> str | None:
        """The first value of *name*; None when it is not there."""
        values = self._index.get(name)
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        return self._index.get(name, [])

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __iter__(self) -> Iterator[Attribute]:
        return iter(self.pairs)

    def __eq__(self, other: object) -> bool:
        return self.pairs == other.pairs if isinstance(other, Attributes) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.pairs)

    def __repr__(self) -> str:
        return f"Attributes({self.pairs!r})"


def _attributes(value: Attributes | Iterable[Attribute]) -> Attributes:
    return value if isinstance(value, Attributes) else Attributes(value)


@frozen
class Media:
    """One m-line and what stands below it."""

    kind: str
    port: int
    protocol: str
    formats: tuple[str, ...]
    attributes: Attributes = field(factory=Attributes, converter=_attributes)
    #: ``b=AS``, kbit/s; None without.
    bandwidth: int | None = None

    @property
    def rejected(self) -> bool:
        """Port 0, and not because it waits for its bundle (RFC 9143, 6)."""
        return self.port == 0 and "bundle-only" not in self.attributes


@frozen
class Session:
    """A whole description. ``version`` is that of the o= line."""

    session_id: int
    version: int
    attributes: Attributes = field(factory=Attributes, converter=_attributes)
    media: tuple[Media, ...] = ()

    def serialise(self) -> str:
        lines = ["v=0", f"o=- {self.session_id} {self.version} IN IP4 127.0.0.1", "s=-", "t=0 0"]
        lines.extend(_written(self.attributes))
        for media in self.media:
            lines.append(f"m={media.kind} {media.port} {media.protocol} {' '.join(media.formats)}")
            lines.append("c=IN IP4 0.0.0.0")
            if media.bandwidth is not None:
                lines.append(f"b=AS:{media.bandwidth}")
            lines.extend(_written(media.attributes))
        lines.append("")
        return "\r\n".join(lines)


def _written(attributes: Attributes) -> Iterator[str]:
    return (f"a={name}:{value}" if value else f"a={name}" for name, value in attributes)


def number(text: str, last: int) -> int:
    """Plain decimal digits from 0 to *last*.

    :raises SdpError: anything else.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 20) or int(text) > last:
        raise SdpError(f"not a number up to {last}")
    return int(text)


def token(text: str, longest: int = MAX_ID) -> bool:
    """Whether *text* is a token (RFC 8866, 9) of at most *longest* characters."""
    return len(text) <= longest and _TOKEN.fullmatch(text) is not None


def _media(value: str) -> tuple[str, int, str, tuple[str, ...]]:
    parts = value.split()
    if len(parts) < 4 or not all(token(part) for part in (parts[0], *parts[3:])):
        raise SdpError("malformed m-line")
    return parts[0], number(parts[1].partition("/")[0], 65535), parts[2], tuple(parts[3:])


def parse(text: str) -> Session:
    """Read a description; lines end in CRLF or LF.

    :raises SdpError: the text is none, or longer than the limits at the head of this module.
    """
    if len(text) > MAX_SIZE:
        raise SdpError(f"the description is longer than {MAX_SIZE} characters")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines or lines[0] != "v=0":
        raise SdpError("the description does not begin with v=0")
    session_id = version = 0
    top: list[Attribute] = []
    sections: list[tuple[tuple[str, int, str, tuple[str, ...]], list[Attribute], list[int]]] = []
    attributes = top
    for line in lines[1:]:
        kind, equals, value = line[:1], line[1:2], line[2:]
        if equals != "=" or not ("a" <= kind <= "z"):
            raise SdpError("a line is not of the form x=value")
        if kind == "a":
            if not _TEXT.fullmatch(value):
                raise SdpError("an attribute is not plain ASCII")
            name, _, rest = value.partition(":")
            attributes.append((name, rest))
        elif kind == "m":
            if len(sections) == MAX_MEDIA:
                raise SdpError(f"the description has more than {MAX_MEDIA} m-lines")
            attributes = []
            sections.append((_media(value), attributes, []))
        elif kind == "o":
            fields = value.split()
            if len(fields) != 6:
                raise SdpError("malformed o-line")
            session_id, version = number(fields[1], (1 << 64) - 1), number(fields[2], (1 << 64) - 1)
        elif kind == "b" and sections and value.startswith("AS:"):
            sections[-1][2].append(number(value[3:], 1 << 31))
    media = tuple(Media(*head, Attributes(body), rate[0] if rate else None) for head, body, rate in sections)
    return Session(session_id, version, Attributes(top), media)


def bundled(session: Session) -> tuple[str, ...]:
    """Mids of the BUNDLE group (RFC 9143), empty without one.

    :raises SdpError: there are more than there can be m-lines.
    """
    for value in session.attributes.all("group"):
        words = value.split(maxsplit=MAX_MEDIA + 1)
        if words[:1] == ["BUNDLE"]:
            if len(words) > MAX_MEDIA + 1:
                raise SdpError("the BUNDLE group is too long")
            return tuple(words[1:])
    return ()


def mid(media: Media) -> str:
    """
    :raises SdpError: there is none, or it does not fit its header extension.
    """
    value = media.attributes.get("mid")
    if value is None or not token(value, MAX_MID):
        raise SdpError("an m-line has no usable a=mid")
    return value


def direction(session: Session, media: Media) -> str:
    """One of :data:`DIRECTIONS`; ``sendrecv`` where nothing is said (RFC 8866, 6.7)."""
    for attributes in (media.attributes, session.attributes):
        for name in DIRECTIONS:
            if name in attributes:
                return name
    return "sendrecv"


@frozen(repr=False)
class Ice:
    """``a=ice-ufrag`` and ``a=ice-pwd`` (RFC 8839, 5.4)."""

    ufrag: str
    pwd: str


def ice(session: Session, media: Media) -> Ice:
    """
    :raises SdpError: they are missing, too short or too long.
    """
    ufrag = media.attributes.get("ice-ufrag") or session.attributes.get("ice-ufrag") or ""
    pwd = media.attributes.get("ice-pwd") or session.attributes.get("ice-pwd") or ""
    if not (4 <= len(ufrag) <= 256 and 22 <= len(pwd) <= 256):
        raise SdpError("a=ice-ufrag or a=ice-pwd is missing or has a wrong length")
    if not (_ICE_CHARS.fullmatch(ufrag) and _ICE_CHARS.fullmatch(pwd)):
        raise SdpError("a=ice-ufrag or a=ice-pwd holds other characters than RFC 8839 allows")
    return Ice(ufrag, pwd)


def fingerprints(session: Session, media: Media) -> tuple[tuple[str, str], ...]:
    """Hash names in lower case with their values in upper case (RFC 8122, 5).

    :raises SdpError: there is none, or one is malformed.
    """
    values = media.attributes.all("fingerprint") or session.attributes.all("fingerprint")
    found = []
    for value in values[:8]:
        algorithm, _, digest = value.partition(" ")
        if not token(algorithm) or len(digest) > 191 or not _HEX.fullmatch(digest):
            raise SdpError("malformed a=fingerprint")
        found.append((algorithm.lower(), digest.upper()))
    if not found:
        raise SdpError("a=fingerprint is missing")
    return tuple(found)


def setup(session: Session, media: Media) -> str:
    """``actpass``, ``active``, ``passive`` or ``holdconn`` (RFC 8842, 5.2); empty when it is not there."""
    return media.attributes.get("setup") or session.attributes.get("setup") or ""


@frozen
class Format:
    """One payload type of an m-line; ``feedback`` holds the values of ``rtcp-fb``."""

    payload_type: int
    name: str
    clock_rate: int
    channels: int = 1
    parameters: str = ""
    feedback: tuple[str, ...] = ()


def formats(media: Media) -> tuple[Format, ...]:
    """The payload types of an RTP m-line that have a rtpmap, in its order.

    :raises SdpError: a payload type or a rtpmap is malformed.
    """
    maps = dict(_numbered(value) for value in media.attributes.all("rtpmap"))
    parameters = dict(_numbered(value) for value in media.attributes.all("fmtp"))
    feedback: dict[str, list[str]] = {}
    for value in media.attributes.all("rtcp-fb"):
        whose, _, what = value.partition(" ")
        feedback.setdefault(whose, []).append(what.strip())
    found = []
    for spelled in dict.fromkeys(media.formats):
        payload_type = number(spelled, 127)
        if payload_type not in maps:
            continue
        name, _, rest = maps[payload_type].partition("/")
        rate, _, channels = rest.partition("/")
        if not token(name):
            raise SdpError("malformed a=rtpmap")
        found.append(
            Format(
                payload_type,
                name,
                number(rate, 1 << 31),
                number(channels, 255) if channels else 1,
                parameters.get(payload_type, ""),
                tuple(feedback.get("*", [])) + tuple(feedback.get(spelled, [])),
            )
        )
    return tuple(found)


def _numbered(value: str) -> tuple[int, str]:
    payload_type, _, rest = value.partition(" ")
    return number(payload_type, 127), rest.strip()


def parameters(text: str) -> dict[str, str]:
    """The ``key=value`` pairs of a fmtp, keys in lower case."""
    pairs = (item.partition("=") for item in text.split(";"))
    return {key.strip().lower(): value.strip() for key, _, value in pairs if key.strip()}


@frozen
class Extension:
    """``a=extmap`` (RFC 8285, 8); ``direction`` is empty where none is given."""

    id: int
    uri: str
    direction: str = ""


def extensions(media: Media) -> tuple[Extension, ...]:
    """
    :raises SdpError: an extmap is malformed or an id is used twice.
    """
    found: dict[int, Extension] = {}
    for value in media.attributes.all("extmap"):
        parts = value.split(maxsplit=2)
        if len(parts) < 2 or len(parts[1]) > MAX_URI:
            raise SdpError("malformed a=extmap")
        text, _, way = parts[0].partition("/")
        identifier = number(text, 255)
        if identifier == 0 or identifier in found or way not in ("", *DIRECTIONS):
            raise SdpError("malformed a=extmap")
        found[identifier] = Extension(identifier, parts[1], way)
    return tuple(found.values())


def msid(media: Media) -> tuple[str, str] | None:
    """Stream and track id (RFC 8830), from ``a=msid`` or the older ``a=ssrc:… msid:``; None without usable ones."""
    values = media.attributes.all("msid")
    if not values:
        values = [what[5:] for _, what in map(_source, media.attributes.all("ssrc")) if what.startswith("msid:")]
    for value in values:
        parts = value.split()
        if len(parts) == 2 and all(token(part) for part in parts):
            return parts[0], parts[1]
    return None


def _source(value: str) -> tuple[str, str]:
    ssrc, _, what = value.partition(" ")
    return ssrc, what


def ssrcs(media: Media) -> tuple[tuple[int, int | None], ...]:
    """SSRCs that the m-line announces, each with that of its RTX from the FID groups (RFC 5576, 4.2).

    :raises SdpError: an SSRC is malformed.
    """
    repairs: dict[int, int] = {}
    for value in media.attributes.all("ssrc-group"):
        parts = value.split()
        if len(parts) == 3 and parts[0] == "FID":
            repairs[number(parts[1], 0xFFFFFFFF)] = number(parts[2], 0xFFFFFFFF)
    announced = dict.fromkeys(number(_source(value)[0], 0xFFFFFFFF) for value in media.attributes.all("ssrc"))
    repairing = set(repairs.values())
    return tuple((ssrc, repairs.get(ssrc)) for ssrc in announced if ssrc not in repairing)


def simulcast(media: Media, way: str) -> tuple[str, ...]:
    """Rids of ``a=simulcast`` for *way* (``send`` or ``recv``) in order, the first of each set of alternatives.

    A rid without its ``a=rid`` line is left out (RFC 8853, 5.3).
    """
    declared = set()
    for value in media.attributes.all("rid"):
        parts = value.split()
        if len(parts) >= 2 and parts[1] == way and token(parts[0], MAX_ID):
            declared.add(parts[0])
    words = (media.attributes.get("simulcast") or "").split()
    for name, streams in zip(words[::2], words[1::2], strict=False):
        if name == way:
            rids = (stream.partition(",")[0].removeprefix("~") for stream in streams.split(";"))
            return tuple(dict.fromkeys(rid for rid in rids if rid in declared))
    return ()


@frozen
class Candidate:
    """``candidate:…`` (RFC 8839, 5.1), the fields that matter to an agent that never sends a check."""

    component: int
    protocol: str
    address: str
    port: int
    #: ``host``, ``srflx``, ``prflx`` or ``relay``.
    type: str


def candidate(text: str) -> Candidate:
    """Read the value of an ``a=candidate`` line, with ``candidate:`` before it or without, and with ``a=`` or without.

    :raises SdpError: it is malformed.
    """
    parts = text.removeprefix("a=").removeprefix("candidate:").split()
    if len(parts) < 8 or parts[6] != "typ" or not all(token(part, 256) or ":" in part for part in parts[:8]):
        raise SdpError("malformed candidate")
    component, port = number(parts[1], 256), number(parts[5], 65535)
    number(parts[3], (1 << 32) - 1)
    return Candidate(component, parts[2].lower(), parts[4], port, parts[7])
