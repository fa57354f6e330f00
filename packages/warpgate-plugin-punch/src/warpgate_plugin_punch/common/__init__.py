"""What the three strategies share: facts of NATs, probes, sockets that know how NATs show them."""
