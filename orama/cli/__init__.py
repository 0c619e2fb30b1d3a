"""``orama``, the command line: it asks the node on this host, over the control socket in its data directory."""
