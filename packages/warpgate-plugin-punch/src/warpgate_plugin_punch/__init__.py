"""Hole punching for warpgate.

The strategies ``tcp_punch``, ``udp_punch`` and ``random_probe`` will live here; this version registers none.
"""

from __future__ import annotations

__version__ = "0.1.0"
