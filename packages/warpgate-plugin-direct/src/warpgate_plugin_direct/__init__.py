"""The direct strategies of warpgate: ``direct_connect`` and ``reverse_connect``."""

from __future__ import annotations

__version__ = "0.1.0"
