"""Relayed connections by TURN (RFC 8656) for warpgate.

The strategy ``turn`` will live here; this version registers none.
"""

from __future__ import annotations

__version__ = "0.1.0"
