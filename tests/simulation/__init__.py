"""Calls in virtual time: clients made of models, links that lose and delay, the real media path between them.

``world`` is time and links, ``ciphers`` what protects packets, ``sources`` what cameras and microphones make,
``endpoint`` a client, ``watch`` and ``flow`` what must hold of every packet, ``forms`` how calls are made, ``call`` a
whole run made from a seed. ``python -m tests.simulation --seeds 5000`` runs many, and ``--seed 17`` one of them alone.
"""
