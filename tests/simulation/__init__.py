"""Calls in virtual time: clients made of models, links that lose and delay, the real media path between them.

``world`` is time and links, ``sources`` what cameras and microphones make, ``endpoint`` a client, ``watch`` what must
hold of every packet, ``call`` a whole run made from a seed. ``python -m tests.simulation --seeds 5000`` runs many, and
``--seed 17`` one of them alone.
"""
