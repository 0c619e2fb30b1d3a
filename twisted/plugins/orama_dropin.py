"""What ``twistd`` sees of orama: names only.

Plugins are imported before the reactor is chosen, so nothing here may import a part of orama.
"""

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker

OramaWebRTC = ServiceMaker(
    "orama-webrtc",
    "orama.tap",
    "One node of orama: TURN server, SFU, signalling and REST in one process.",
    "orama-webrtc",
)

OramaReactor = Reactor(
    "orama-asyncio",
    "orama.reactors",
    "The asyncio reactor on an event loop of its own: what orama-webrtc runs on.",
)
