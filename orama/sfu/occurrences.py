"""What happens in rooms, as the world outside is told of it: rooms, participants and tracks that come and go.

Clients hear of each other by ``sfu.events``; this is for whoever looks after the namespace (``orama.webhooks``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

ROOM_STARTED, ROOM_FINISHED = "room_started", "room_finished"
PARTICIPANT_JOINED, PARTICIPANT_LEFT = "participant_joined", "participant_left"
TRACK_PUBLISHED, TRACK_UNPUBLISHED = "track_published", "track_unpublished"


@frozen
class Occurrence:
    """Something happened; times are in seconds since 1970.

    :ivar id: by which it is known when it is told twice.
    :ivar about: what there is to say besides, ready for JSON.
    """

    id: str
    event: str
    at: float
    namespace: str
    room_id: str
    #: With the id it tells one life of a room from the next.
    room_created_at: float
    about: Mapping[str, Any]
