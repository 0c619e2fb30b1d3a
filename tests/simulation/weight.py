"""What a client's media path holds, counted: so that a test can see what grows."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sized

#: What is walked into: containers, and objects of these packages.
_PACKAGES = ("orama.",)


def weight(root: object) -> Counter[str]:
    """How many entries there are in each kind of container that can be reached from *root*, by where it hangs."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    left: list[tuple[str, object]] = [("", root)]
    while left:
        name, each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, (dict, list, tuple, set, frozenset, deque)):
            if not isinstance(each, tuple):  # values
                found[name] += _filled(each)
            left += [(name, one) for one in (each.values() if isinstance(each, Mapping) else each)]
        elif type(each).__module__.startswith(_PACKAGES):
            left += [(f"{type(each).__name__}.{key}", value) for key, value in _attributes(each)]
    return found


def _filled(container: Sized) -> int:
    # A store has all its places from the start.
    return sum(each is not None for each in container) if isinstance(container, list) else len(container)


def _attributes(each: object) -> list[tuple[str, object]]:
    names = [name for kind in type(each).__mro__ for name in getattr(kind, "__slots__", ())]
    found = [(name, getattr(each, name)) for name in names if name != "__weakref__" and hasattr(each, name)]
    return found + list(getattr(each, "__dict__", {}).items())
