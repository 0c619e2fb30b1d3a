"""Three nodes, the Internet and two clients on one machine, each in Linux namespaces of its own, with real programs.

``python -m tests.lab up`` brings it up, ``down`` takes it down; docs/lab.rst describes it.
"""
