"""Hole punching for warpgate.

The strategies ``tcp_punch``, ``udp_punch`` and ``random_probe``; each has a package of its own here.
"""

from __future__ import annotations

__version__ = "0.1.0"
