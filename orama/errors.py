"""Every error that crosses a border of orama: a stable code for programs, a text for a person.

A REST answer is made from one of these in ``rest.site`` and a signalling ``error`` message in
``signaling.session``; nothing else turns an exception into something a client sees. Texts never
hold a key, a token or a secret.
"""

from __future__ import annotations


class OramaError(Exception):
    """Something went wrong that we have a name for.

    :param code: stable ``snake_case`` name, part of the public contract.
    :param message: one sentence for a person.
    """

    status = 500

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class BadRequest(OramaError):
    """The request is malformed (400)."""

    status = 400


class NotAuthenticated(OramaError):
    """No credentials, or wrong ones (401)."""

    status = 401


class Forbidden(OramaError):
    """Known, but not allowed to do this (403)."""

    status = 403


class NotFound(OramaError):
    """There is no such thing (404)."""

    status = 404


class Conflict(OramaError):
    """The thing exists already, or is in the wrong state (409)."""

    status = 409


class PreconditionFailed(OramaError):
    """Something that this needs is not there yet (412)."""

    status = 412


class TooLarge(OramaError):
    """More bytes than the limit (413)."""

    status = 413


class RateLimited(OramaError):
    """Too many requests (429); ``retry_after`` is in whole seconds."""

    status = 429

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__("rate_limited", message)
        self.retry_after = retry_after


class Unavailable(OramaError):
    """Not now (503): draining, starting, or something this needs is away."""

    status = 503


class InsufficientStorage(OramaError):
    """No block, port or slot is left (507)."""

    status = 507


class SignalError(OramaError):
    """A signalling message that cannot be obeyed: ``code`` is one of the contract's error codes.

    :param fatal: the socket closes after the error message.
    """

    status = 400

    def __init__(self, code: str, message: str, fatal: bool = False) -> None:
        super().__init__(code, message)
        self.fatal = fatal


class ConfigurationError(OramaError):
    """The configuration cannot be used. The message names the file, the key and why, on one line."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_configuration", message)


class StartError(OramaError):
    """The node cannot start (a busy port, a data directory of another version), said on one line."""

    def __init__(self, message: str) -> None:
        super().__init__("cannot_start", message)
