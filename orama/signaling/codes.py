"""Closing codes and error codes of the signalling socket (contract, section 4), and which error closes with which."""

from __future__ import annotations

# Closing codes of the contract; the first three and the last are of RFC 6455, 7.4.1.
NORMAL = 1000
GOING_AWAY = 1001
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
NOT_AUTHENTICATED = 4401
FORBIDDEN = 4403
NOT_FOUND = 4404
JOIN_TIMEOUT = 4408
REPLACED = 4409
RATE_LIMITED = 4429
#: The node of the room is gone, or the room is: who joins again finds it where it is now.
SERVICE_RESTART = 1012
TRY_AGAIN_LATER = 1013

#: The closing code after a fatal error.
CLOSING = {
    "forbidden": FORBIDDEN,
    "rate_limited": RATE_LIMITED,
    "room_full": TRY_AGAIN_LATER,
    "internal": INTERNAL_ERROR,
}
#: Every code of the contract; anything else that goes wrong is ``internal``.
CODES = frozenset(
    {
        "invalid_message",
        "invalid_join",
        "room_mismatch",
        "room_full",
        "not_joined",
        "invalid_offer",
        "invalid_answer",
        "invalid_candidate",
        "unknown_type",
        "unknown_track",
        "forbidden",
        "rate_limited",
        "internal",
    }
)
