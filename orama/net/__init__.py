"""Sockets that move bursts, the fabric that joins parts of one process, and TLS contexts."""
