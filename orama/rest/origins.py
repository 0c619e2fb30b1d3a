"""Which web pages may call: the ``Origin`` header (RFC 6454, 7) against the configuration.

A browser always sends ``Origin`` with a WebSocket and with a cross-origin request; other programs
send none and are not bound by it.
"""

from __future__ import annotations

from collections.abc import Iterable


class Origins:
    """The configured origins; ``"*"`` among them is any."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(origin.rstrip("/").lower() for origin in allowed)

    def permits(self, origin: str, host: str) -> bool:
        """May a page of *origin* call us under the name *host* (the ``Host`` header)?

        Our own pages may, whichever scheme a proxy in front of us speaks. ``null`` (a sandboxed frame,
        a local file) is an origin like any other and must be listed, or covered by ``*``.
        """
        origin = origin.strip().lower()
        if "*" in self._allowed or origin in self._allowed:
            return True
        scheme, separator, authority = origin.partition("://")
        if not separator or scheme not in ("http", "https") or not authority:
            return False
        port = ":443" if scheme == "https" else ":80"
        return authority.removesuffix(port) == host.strip().lower().removesuffix(port)
