"""``tcp_punch``: TCP simultaneous open through two NATs."""

from __future__ import annotations
