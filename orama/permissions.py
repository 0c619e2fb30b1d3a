"""What somebody may do in a room: ``publish``, ``subscribe`` and ``data``, whole or of some tracks alone.

``publish:screen`` is the right to publish what its publisher calls a screen, ``subscribe:audio`` that to receive sound.
After the colon stands a kind, ``audio`` or ``video``, or a source: ``camera``, ``microphone``, ``screen`` and so on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: All that there is.
EVERYTHING = frozenset({"publish", "subscribe", "data"})
#: Of one token; further ones give nothing.
MOST = 64
_PART = re.compile(r"(?:publish|subscribe):[a-z0-9-]{1,32}", re.ASCII)


def known(permission: str) -> bool:
    """Whether it is a permission at all."""
    return permission in EVERYTHING or _PART.fullmatch(permission) is not None


def granted(permissions: Iterable[str]) -> frozenset[str]:
    """Those of *permissions* that mean something."""
    return frozenset(sorted(filter(known, permissions))[:MOST])


def allows(permissions: frozenset[str], what: str, kind: str, source: str) -> bool:
    """Whether *what*, ``publish`` or ``subscribe``, is allowed for a track."""
    return not permissions.isdisjoint((what, f"{what}:{kind}", f"{what}:{source}"))


def allows_some(permissions: frozenset[str], what: str) -> bool:
    """Whether *what* is allowed for any track."""
    return any(permission.partition(":")[0] == what for permission in permissions)
