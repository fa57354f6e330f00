"""Interfaces, routes, pipes and listeners: everything that touches a socket."""
