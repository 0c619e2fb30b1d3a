"""The TURN server (RFC 8656, RFC 8489, RFC 6062, RFC 8016): shared listeners, many namespaces.

``credentials``, ``tenants``, ``peers``, ``quota``, ``nonce``, ``ports``, ``allocation``, ``connections``, ``mobility``
and ``server`` decide and own no socket; ``relay``, ``tcp``, ``stream`` and ``listeners`` are the shell that does.
"""
