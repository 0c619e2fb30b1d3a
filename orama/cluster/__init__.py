"""What a node and, together, the nodes serve: namespaces, their keys, their ports and their rooms."""
