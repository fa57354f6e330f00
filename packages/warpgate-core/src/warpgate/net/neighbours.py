"""Which hardware address a gateway has: tells one 192.168.1.0/24 from another."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ATF_COM: Final = 0x02  # linux/if_arp.h: the entry is complete


def parse_arp(text: str) -> dict[tuple[str, str], str]:
    """Parse Linux's ``/proc/net/arp``: the hardware address of each (interface, ip); no I/O."""
    found: dict[tuple[str, str], str] = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        try:
            if int(fields[2], 16) & ATF_COM and fields[3].strip("0:"):
                found[fields[5], fields[0]] = fields[3].lower()
        except (IndexError, ValueError):
            continue
    return found


def hardware_addresses() -> dict[tuple[str, str], str]:
    """Return what is known of IPv4 neighbours, by (interface, ip); empty where it isn't cheap."""
    for folder in ("/proc/thread-self/net", "/proc/net"):
        try:
            return parse_arp(Path(folder, "arp").read_text(encoding="ascii", errors="replace"))
        except OSError:
            continue
    return {}
