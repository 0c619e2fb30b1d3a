"""The TURN server (RFC 8656, RFC 8489): one process, shared listeners, many namespaces.

``credentials``, ``tenants``, ``peers``, ``quota``, ``nonce``, ``ports``, ``allocation`` and ``server`` decide and
own no socket; ``relay``, ``stream`` and ``listeners`` are the shell that does.
"""
