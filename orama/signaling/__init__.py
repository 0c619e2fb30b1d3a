"""Signalling: what clients say over the WebSocket, and the state of each of their sockets."""
