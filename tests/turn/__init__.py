"""The TURN server."""
