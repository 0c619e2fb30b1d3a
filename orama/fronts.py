"""The signalling ports of namespaces whose rooms are in several processes of this node.

There is one such port for a namespace, and a client of another node's gateway may come for any room: so the node itself
answers, and its session passes the client on to the process that has the room (:mod:`orama.signaling.trunks`). What is
said in between goes through the node, and media do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.web.resource import IResource

from orama.errors import Unavailable
from orama.listening import busy
from orama.rest.origins import Origins
from orama.rest.site import Site
from orama.serving import Require, only
from orama.settings import Settings
from orama.signaling.site import signaling_site


@frozen
class _Front:
    number: int
    site: Site
    port: IListeningPort


class Fronts:
    """:param settings: as they are now.

    :param signal: makes the signalling resource of the namespaces that a ``Require`` lets in.
    :param require: whether a namespace has WebRTC at all.
    """

    def __init__(
        self,
        reactor: Any,
        settings: Callable[[], Settings],
        signal: Callable[[Settings, Require], IResource],
        require: Require,
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._signal = signal
        self._require = require
        self._fronts: dict[str, _Front] = {}

    async def open(self, namespace: str, number: int) -> None:
        """Answer for *namespace* on port *number*, and on no other.

        :raises Unavailable: ``port_in_use``.
        """
        before = self._fronts.get(namespace)
        if before is not None and before.number == number:
            return
        await self.close(namespace)
        site = self._site(namespace)
        try:
            port = self._reactor.listenTCP(number, site, interface=self._settings().internal_ip)
        except CannotListenError as error:
            raise Unavailable("port_in_use", f"{namespace} cannot be served: {busy(error)}") from None
        self._fronts[namespace] = _Front(number, site, port)

    async def close(self, namespace: str) -> None:
        """Take nobody new for *namespace*; connections stay."""
        front = self._fronts.pop(namespace, None)
        if front is not None:
            await maybeDeferred(front.port.stopListening)

    async def stop(self) -> None:
        """Take nobody new at all."""
        for namespace in tuple(self._fronts):
            await self.close(namespace)

    def configure(self) -> None:
        """The settings are other ones; connections stay."""
        for namespace, front in self._fronts.items():
            front.site.adopt(self._site(namespace))

    def _site(self, namespace: str) -> Site:
        settings = self._settings()
        signal = self._signal(settings, only(namespace, self._require))
        return signaling_site(self._reactor, settings, Origins(settings.limits.origins), signal)
