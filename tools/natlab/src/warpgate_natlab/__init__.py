"""A NAT laboratory on one machine; ``docs/laboratory.md`` of the repository shows it."""

from __future__ import annotations

from .lab import Host, Lab
from .namespaces import LabError, why_not
from .profiles import PAIRS, PROFILES, Expectation, Pair, Profile

__all__ = [
    "PAIRS",
    "PROFILES",
    "Expectation",
    "Host",
    "Lab",
    "LabError",
    "Pair",
    "Profile",
    "why_not",
]
