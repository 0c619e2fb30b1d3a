"""The messages of signalling as values: one class a type, and JSON on either side of them.

A message is one flat JSON object in one text frame, ``{"type": T, …}`` with camelCase fields;
``docs/signaling.rst`` has the whole protocol in prose. :func:`parse` is total: any text gives a message or one
:class:`SignalError`. Unknown fields are ignored, so that a browser's own ``RTCSessionDescription`` and
``RTCIceCandidate`` go through as they are. :func:`serialise` works by rule on our own classes and on those of
``sfu.events`` alike. What a message means is not decided here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, get_args

from attrs import NOTHING, Attribute, field, fields, frozen, has

from orama.errors import SignalError
from orama.sfu.events import PeerInfo

#: Objects and arrays inside one another. Nothing of ours needs more than three.
MAX_DEPTH = 16
#: Bytes of ``metadata`` as JSON: it is copied to every other peer of the room.
MAX_METADATA = 4096
MAX_USER_ID = 128
#: A candidate line is about 200 characters (RFC 8839, 5.1); names in it may be long.
MAX_CANDIDATE = 1024
#: Track ids, peer ids, mids and ufrags (RFC 8839, 5.4 allows 256 for the last).
MAX_ID = 256
#: m-lines that one description may have a source for.
MAX_SOURCES = 256
#: Slots of one kind, and tracks that a client may name to be on them.
MAX_SLOTS = 32
MAX_PAGE = 100
#: ``LAYERS[0]`` is the default.
LAYERS = ("auto", "low", "mid", "high")

#: Room ids of the contract.
ROOM_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)
_SOURCE = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f]")

Validator: TypeAlias = Callable[[Any, "Attribute[Any]", Any], None]


def _text(limit: int, what: str = "a string", *, empty: bool = False, plain: bool = True) -> Validator:
    """A string of 1 (or 0) to *limit* characters; *plain* forbids control characters."""

    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if not isinstance(value, str):
            raise ValueError(f"{_camel(attribute.name)} must be {what}")
        if not value and not empty:
            raise ValueError(f"{_camel(attribute.name)} must not be empty")
        if len(value) > limit:
            raise ValueError(f"{_camel(attribute.name)} is longer than {limit} characters")
        if plain and _CONTROL.search(value):
            raise ValueError(f"{_camel(attribute.name)} holds control characters")

    return check


def _maybe(check: Validator) -> Validator:
    def checked(instance: Any, attribute: Attribute[Any], value: Any) -> None:
        if value is not None:
            check(instance, attribute, value)

    return checked


def _flag(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{_camel(attribute.name)} must be true or false")


def _number(last: int) -> Validator:
    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= last:
            raise ValueError(f"{_camel(attribute.name)} must be a whole number from 0 to {last}")

    return check


def _room(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, str) or not ROOM_ID.fullmatch(value):
        raise ValueError(f"{_camel(attribute.name)} must be 1 to 128 characters of A-Z a-z 0-9 _ . : -")


def _one_of(values: tuple[str, ...]) -> Validator:
    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if value not in values:
            raise ValueError(f"{_camel(attribute.name)} must be one of {', '.join(values)}")

    return check


def _small(_: Any, attribute: Attribute[Any], value: Any) -> None:
    try:
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())
    except ValueError:
        raise ValueError(f"{_camel(attribute.name)} holds a number that JSON does not have") from None
    if size > MAX_METADATA:
        raise ValueError(f"{_camel(attribute.name)} is longer than {MAX_METADATA} bytes")


def _sources(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, Mapping) or len(value) > MAX_SOURCES:
        raise ValueError(f"{attribute.name} must be an object of at most {MAX_SOURCES} entries, mid to source")
    for mid, source in value.items():
        if len(mid) > MAX_ID or not isinstance(source, str) or not _SOURCE.fullmatch(source):
            raise ValueError(f"{attribute.name} must map a mid to a name of a-z 0-9 -")


def _ids(limit: int) -> Validator:
    """A list of at most *limit* ids."""
    check_one = _text(MAX_ID)

    def check(instance: Any, attribute: Attribute[Any], value: Any) -> None:
        if not isinstance(value, tuple) or len(value) > limit:
            raise ValueError(f"{_camel(attribute.name)} must be a list of at most {limit} ids")
        for each in value:
            check_one(instance, attribute, each)

    return check


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _or_empty(value: Any) -> Any:
    return "" if value is None else value


# What clients say.


@frozen
class Join:
    """Take a place in the room. *resume* is a token of an earlier ``welcome``."""

    room_id: str | None = field(default=None, validator=_maybe(_room))
    user_id: str | None = field(default=None, validator=_maybe(_text(MAX_USER_ID)))
    metadata: Any = field(default=None, validator=_small)
    resume: str | None = field(default=None, validator=_maybe(_text(MAX_ID)))


@frozen
class Offer:
    """``sources`` says by mid what the m-lines are (``camera``, ``screen``, …); else it follows from their kind.
    ``encrypted`` false says that the SFU may look into frames and put some together: there is nothing end to end."""

    # The frame has its limit already; a description of its size is as good as any.
    sdp: str = field(validator=_text(1 << 20, plain=False))
    sources: Mapping[str, str] = field(factory=dict, validator=_sources)
    encrypted: bool = field(default=True, validator=_flag)


@frozen
class Answer:
    sdp: str = field(validator=_text(1 << 20, plain=False))


@frozen
class IceCandidate:
    """``RTCIceCandidateInit`` as a browser writes it; an empty candidate ends them (RFC 8838, 13)."""

    candidate: str = field(converter=_or_empty, validator=_text(MAX_CANDIDATE, empty=True))
    sdp_mid: str | None = field(default=None, validator=_maybe(_text(MAX_ID, empty=True)))
    sdp_m_line_index: int | None = field(default=None, validator=_maybe(_number(65535)))
    username_fragment: str | None = field(default=None, validator=_maybe(_text(MAX_ID, empty=True)))


@frozen
class TrackState:
    """Sent by a publisher: its trackId, or the mid of its m-line."""

    track_id: str = field(validator=_text(MAX_ID))
    muted: bool = field(validator=_flag)


@frozen
class Subscribe:
    track_id: str = field(validator=_text(MAX_ID))
    layer: str = field(default=LAYERS[0], validator=_one_of(LAYERS))
    #: Higher comes first when there is not enough for all.
    priority: int = field(default=0, validator=_number(255))


@frozen
class Unsubscribe:
    track_id: str = field(validator=_text(MAX_ID))


@frozen
class Receive:
    """What of a kind comes: as many as *last_n*, or as *tracks*, which come first; with neither, everything."""

    kind: str = field(validator=_one_of(("audio", "video")))
    last_n: int | None = field(default=None, validator=_maybe(_number(MAX_SLOTS)))
    tracks: tuple[str, ...] = field(default=(), converter=_listed, validator=_ids(MAX_PAGE))


@frozen
class Kick:
    peer_id: str = field(validator=_text(MAX_ID))


@frozen
class Mute:
    track_id: str = field(validator=_text(MAX_ID))


@frozen
class Leave:
    pass


Request: TypeAlias = (
    Join | Offer | Answer | IceCandidate | TrackState | Subscribe | Unsubscribe | Receive | Kick | Mute | Leave
)


# What we say, beside the events of the SFU.


@frozen
class Welcome:
    peer_id: str
    room_id: str
    user_id: str
    resume: str = field(repr=False)
    peers: tuple[PeerInfo, ...]


@frozen
class TurnCredentials:
    uris: tuple[str, ...]
    username: str
    password: str = field(repr=False)
    ttl: int


@frozen
class RefreshCredentials:
    uris: tuple[str, ...]
    username: str
    password: str = field(repr=False)
    ttl: int


@frozen
class ServerDraining:
    reason: str
    #: Milliseconds from now until the socket is closed.
    deadline_ms: int
    reconnect_url: str | None = None


def _kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


_REQUESTS: dict[str, type[Any]] = {_kebab(request.__name__): request for request in get_args(Request)}
_FIELDS = {request: tuple((f.name, _camel(f.name)) for f in fields(request)) for request in _REQUESTS.values()}
#: The code of a message whose type is known and whose fields are wrong; ``invalid_message`` for the others.
_INVALID = {Join: "invalid_join", Offer: "invalid_offer", Answer: "invalid_answer", IceCandidate: "invalid_candidate"}


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _check_shape(root: Any) -> None:
    """Refuse what is nested too deeply, and text that has no UTF-8 (a lone half of a surrogate pair)."""
    level = [root]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                if _SURROGATE.search(value):
                    raise ValueError("the text holds half a surrogate pair")
            elif isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
        if not below:
            return
        level = below
    raise ValueError(f"the message is nested deeper than {MAX_DEPTH} levels")


def parse(text: str | bytes) -> Request:
    """Read one frame.

    :raises SignalError: ``invalid_message`` for what is no JSON object with a type, ``unknown_type``, and for fields
        that are missing or wrong the code of the type: ``invalid_join``, ``invalid_offer``, ``invalid_answer``,
        ``invalid_candidate``, else ``invalid_message``.
    """
    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text, parse_constant=_refuse_constant)
        _check_shape(value)
    except RecursionError:
        raise SignalError("invalid_message", f"the message is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError:
        raise SignalError("invalid_message", "the message is not JSON") from None
    if not isinstance(value, dict):
        raise SignalError("invalid_message", "the message is not a JSON object")
    kind = value.get("type")
    if not isinstance(kind, str):
        raise SignalError("invalid_message", "the message has no type")
    request = _REQUESTS.get(kind)
    if request is None:
        raise SignalError("unknown_type", f"there is no message of type {kind[:40]!r}")
    given = {name: value[key] for name, key in _FIELDS[request] if key in value}
    try:
        built: Request = request(**given)
    except ValueError as error:
        raise SignalError(_INVALID.get(request, "invalid_message"), f"in {kind}: {error}") from None
    except TypeError:
        missing = ", ".join(_camel(f.name) for f in fields(request) if f.default is NOTHING and f.name not in given)
        raise SignalError(_INVALID.get(request, "invalid_message"), f"in {kind}: {missing} is missing") from None
    return built


def _plain(value: Any) -> Any:
    if has(type(value)):
        return {
            _camel(f.name): _plain(inner) for f in fields(type(value)) if (inner := getattr(value, f.name)) is not None
        }
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def type_of(event: Any) -> str:
    """``PeerJoined`` → ``peer-joined``."""
    return _kebab(type(event).__name__)


def serialise(event: Any) -> str:
    """The frame for *event*, an attrs value of this module or of ``sfu.events``; a field that is None is left out."""
    return json.dumps({"type": type_of(event), **_plain(event)}, ensure_ascii=False, separators=(",", ":"))
