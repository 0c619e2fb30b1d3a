"""Bytes to values and back, and nothing else: no socket, no clock, no reactor."""
