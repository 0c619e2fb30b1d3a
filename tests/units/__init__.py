"""The roles of a namespace as units of systemd, and what systemd is told."""
