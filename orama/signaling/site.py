"""What answers on the signalling port of a namespace: signalling, for the nodes of the cluster, and nothing else."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.web.resource import IResource

from orama.rest.internal import REQUEST_BURST, REQUEST_RATE
from orama.rest.json_resource import JsonResource
from orama.rest.origins import Origins
from orama.rest.site import Site
from orama.settings import Settings


def signaling_site(reactor: Any, settings: Settings, origins: Origins, signal: IResource) -> Site:
    """:param origins: whose pages may read what is said of other addresses.

    :param signal: what is at ``/v1/webrtc/signal``.
    """
    root, version, webrtc = (JsonResource(origins) for _ in range(3))
    root.putChild(b"v1", version)
    version.putChild(b"webrtc", webrtc)
    webrtc.putChild(b"signal", signal)
    # Who comes is a gateway, with all its clients: they were held to their limits there.
    limits = evolve(settings.limits, request_rate=REQUEST_RATE, request_burst=REQUEST_BURST)
    site = Site(root, evolve(settings, limits=limits), reactor)
    site.noisy = False
    return site
