"""TURN credentials for a user of a namespace: what REST answers with and signalling sends."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from typing import Protocol

from attrs import field, frozen
from twisted.internet.interfaces import IReactorTime

from orama.cluster.desired import WebRtcConfig
from orama.settings import Settings
from orama.turn.credentials import issue, uris

#: A user id that can stand in a user name as it is; any other goes in as a digest of it.
_PLAIN = re.compile(r"[A-Za-z0-9_.@-]{1,64}\Z")


@frozen
class TurnGrant:
    """``ttl`` in seconds; the password is good for making allocations until then."""

    uris: tuple[str, ...]
    username: str
    password: str = field(repr=False)
    ttl: int


def turn_host(settings: Settings, namespace: str) -> str:
    """The name under which clients of *namespace* reach TURN."""
    return f"turn.ns-{namespace}.{settings.base_domain}" if settings.base_domain else settings.public_ip


class Configs(Protocol):
    """Who knows what a namespace is served with (``cluster.namespaces.Namespaces``, ``worker.Worker``)."""

    async def config(self, name: str) -> WebRtcConfig:
        """:raises NotFound: ``webrtc_not_enabled``."""


class TurnAccess:
    """Issues credentials for the TURN servers of the cluster.

    :param alive: whether a node is.
    :param issued: is told of each user name.
    """

    def __init__(
        self,
        settings: Settings,
        namespaces: Configs,
        clock: IReactorTime,
        alive: Callable[[str], bool] = lambda node_id: True,
        issued: Callable[[str], None] = lambda username: None,
    ) -> None:
        self._settings = settings
        self._namespaces = namespaces
        self._clock = clock
        self._alive = alive
        self._issued = issued

    async def issue(self, namespace: str, user_id: str | None = None) -> TurnGrant:
        """:raises NotFound: ``webrtc_not_enabled``.

        :param user_id: whose quotas they count for; without it only the namespace's apply.
        """
        config = await self._namespaces.config(namespace)
        user = user_id or ""
        if user and _PLAIN.match(user) is None:
            user = sha256(user.encode()).hexdigest()[:32]
        made = issue(config.turn_secret, namespace, config.credential_ttl, self._clock.seconds(), user)
        self._issued(made.username)
        return TurnGrant(tuple(self._servers(config)), made.username, made.password, made.ttl)

    def _servers(self, config: WebRtcConfig) -> list[str]:
        """One name for all, or else the address of each node that relays and lives.

        A browser takes one address of a name, and remembers it for as long as the record may live, also when that node
        has just gone. Where there are several, the addresses of the living follow the name.
        """
        settings = self._settings
        living = [place for place in config.turns if self._alive(place.node_id)] or config.turns
        if not settings.base_domain and living:
            return [uri for place in living for uri in uris(place.public_ip, place.turn_port, place.turns_port)]
        named = uris(turn_host(settings, config.namespace), settings.turn_port, settings.turns_port)
        if len(config.turns) > 1:
            named += [uris(place.public_ip, place.turn_port, place.turns_port)[0] for place in living]
        return named
