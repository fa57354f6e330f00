"""STUN (RFC 8489, RFC 5780): codec, transactions, the client, and the probe of NAT behaviour."""
