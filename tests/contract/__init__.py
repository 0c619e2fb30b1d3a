"""The contract, asked of a node in a process of its own by clients that know nothing of how it is made."""
