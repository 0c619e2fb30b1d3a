"""``POST /v1/internal/acme/present`` and ``cleanup`` in the form of lego's ``httpreq`` provider.

``{"fqdn", "value"}`` with HTTP Basic (RFC 7617): the user is ``orama``, the password stands in the data directory.
Who can sign as a node of the cluster needs no password. These resources belong on the internal site alone.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode
from collections.abc import Awaitable, Callable
from hashlib import sha256

from twisted.web.resource import IResource
from twisted.web.server import Request

from orama.cluster.acme import Challenges
from orama.errors import BadRequest, NotAuthenticated
from orama.rest.internal import Gate
from orama.rest.json_resource import JsonResource, Reply, error_reply, header, json_object
from orama.rest.origins import Origins

PRESENT = "v1/internal/acme/present"
CLEANUP = "v1/internal/acme/cleanup"
USER = "orama"
CHALLENGE = 'Basic realm="orama ACME", charset="UTF-8"'


class AcmeResource(JsonResource):
    """:param change: :meth:`.Challenges.present` or :meth:`.Challenges.cleanup`.

    :param password: as it stands in the data directory.
    """

    def __init__(self, gate: Gate, change: Callable[[str, str], Awaitable[None]], password: bytes) -> None:
        super().__init__(Origins(()))
        self._gate = gate
        self._change = change
        self._password = password.strip()

    async def post(self, request: Request) -> Reply:
        try:
            self._authenticate(request)
        except NotAuthenticated as error:
            refusal = error_reply(error)
            return Reply(refusal.status, refusal.body, {"WWW-Authenticate": CHALLENGE})
        body = json_object(request)
        fqdn, value = body.get("fqdn"), body.get("value")
        if not isinstance(fqdn, str) or not isinstance(value, str):
            raise BadRequest("invalid_request", "fqdn and value are needed, as texts")
        await self._change(fqdn, value)
        return Reply(200, {"status": "ok"})

    def _authenticate(self, request: Request) -> None:
        """:raises NotAuthenticated: neither the password nor a signature is right."""
        given = header(request, "authorization")
        if given is None and header(request, "x-orama-signature") is not None:
            self._gate.admit(request, addressed=True)
        elif not is_authorized(given or "", USER, self._password):
            raise NotAuthenticated("wrong_password", f"the user is {USER}, the password is in the data directory")


def acme_routes(gate: Gate, challenges: Challenges, password: bytes) -> dict[str, IResource]:
    """The resources for :func:`.internal_site`."""
    return {
        PRESENT: AcmeResource(gate, challenges.present, password),
        CLEANUP: AcmeResource(gate, challenges.cleanup, password),
    }


def is_authorized(given: str, user: str, password: bytes) -> bool:
    """Whether the ``Authorization`` header *given* names *user* and *password*, in a time that tells nothing."""
    scheme, _, encoded = given.partition(" ")
    try:
        decoded = b64decode(encoded.strip(), validate=True) if scheme.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        decoded = b""
    wanted = user.encode() + b":" + password
    return bool(password) and hmac.compare_digest(sha256(decoded).digest(), sha256(wanted).digest())
