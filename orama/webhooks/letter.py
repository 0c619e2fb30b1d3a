"""One event on its way: what is posted, and what has to be known to post it."""

from __future__ import annotations

import json

from attrs import field, frozen
from attrs.validators import instance_of

from orama.sfu.occurrences import Occurrence
from orama.timestamp import timestamp


@frozen
class Letter:
    """:ivar at: when it happened, seconds since 1970. :ivar body: JSON, the same at every attempt.

    :raises TypeError: by its making, when a value is of another type.
    """

    id: str = field(validator=instance_of(str))
    event: str = field(validator=instance_of(str))
    at: float = field(validator=instance_of(float))
    namespace: str = field(validator=instance_of(str))
    room_id: str = field(validator=instance_of(str))
    body: str = field(validator=instance_of(str))


def letter(occurrence: Occurrence, node_id: str) -> Letter:
    """:raises ValueError: what there is to say cannot be JSON."""
    body = {
        "id": occurrence.id,
        "event": occurrence.event,
        "created_at": timestamp(occurrence.at),
        "namespace": occurrence.namespace,
        "node_id": node_id,
        "room_id": occurrence.room_id,
        "room_created_at": timestamp(occurrence.room_created_at),
        **occurrence.about,
    }
    return Letter(
        occurrence.id,
        occurrence.event,
        float(occurrence.at),
        occurrence.namespace,
        occurrence.room_id,
        json.dumps(body, separators=(",", ":"), allow_nan=False),
    )
