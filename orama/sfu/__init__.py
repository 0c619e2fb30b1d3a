"""The selective forwarding unit: ICE-lite, DTLS, negotiation, forwarding, rooms and data channels."""
