"""``udp_punch``: both sides write to each other until a hello comes through their NATs."""
