"""Clients from other hands, each a program of its own that speaks to :class:`tests.interop.foreign.Foreign`.

A line of JSON each way a message. The first one in is the order: ``uri``, ``username``, ``password``, ``name`` and
``simulcast``. Then come the SFU's messages, and what the client says to the SFU goes out. A line with ``seen`` instead
of ``type`` tells what has come so far: ``state`` of the connection, ``audio`` and ``video`` (packets), ``frames`` of
video that were decoded, where the client decodes, and ``heard``, the distinct texts from others. All of them are relay
only, publish audio and video, open a data channel ``chat``, and say ``hello from NAME`` on it five times a second.
"""
