"""Parsers and ports against random bytes."""
