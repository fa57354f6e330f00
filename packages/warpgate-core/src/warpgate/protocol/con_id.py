"""The id of a connection attempt, which both sides share (WIRE.md section 5)."""

from __future__ import annotations

import string
from typing import Final

PLUGIN_ID_LENGTH: Final = 15
PLUGIN_ID_ALPHABET: Final = string.ascii_uppercase + string.ascii_lowercase + string.digits

_ALLOWED: Final = frozenset(PLUGIN_ID_ALPHABET)


def valid_plugin_id(text: object) -> bool:
    """Return whether ``text`` is a string of exactly 15 characters of ``[A-Za-z0-9]``."""
    return isinstance(text, str) and len(text) == PLUGIN_ID_LENGTH and _ALLOWED.issuperset(text)
