"""What NATs did, by network: known again at once when the machine comes back to one.

The file is JSON, ``networks.json`` in the install path, and may be deleted at any time. It has no
external addresses: those are asked for anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from warpgate.errors import ConfigError
from warpgate.names.files import read_text, write_text
from warpgate.nat.behaviour import Allocation, Filtering, Mapping, PortAllocation
from warpgate.nat.report import PathReport
from warpgate.net.constants import IP4, IP6, af_name
from warpgate.net.neighbours import hardware_addresses
from warpgate.net.nic import Interface
from warpgate.protocol.ip import split_scope

log = logging.getLogger("warpgate")

FILE_NAME: Final = "networks.json"
FORMAT: Final = 1
MAX_NETWORKS: Final = 32
MAX_CHARACTERS: Final = 1 << 17
_FACTS: Final = ("udp", "tcp", "hairpin", "firewall", "several_nats")


@dataclass(frozen=True, slots=True)
class NetworkKey:
    """How a network is known again: by one interface and family.

    Attributes:
        interface: its name.
        af: ``IP4`` or ``IP6``.
        network: the local prefix.
        gateway: the router's address; None: on link, or not told.
        hardware: the router's hardware address; None: not known, which matches any.

    """

    interface: str
    af: int
    network: str
    gateway: str | None
    hardware: str | None = None

    def matches(self, other: NetworkKey) -> bool:
        """Return whether the two may be one network."""
        if replace(self, hardware=None) != replace(other, hardware=None):
            return False
        return None in (self.hardware, other.hardware) or self.hardware == other.hardware


Entry = tuple[NetworkKey, PathReport, str]  # and when it was seen, in ISO 8601


def network_keys(nics: Sequence[Interface], places: Sequence[tuple[str, int, str]]) -> dict[
    tuple[str, int], NetworkKey
]:  # fmt: skip
    """Return the keys of the networks that some places are in.

    Args:
        nics: the interfaces.
        places: (interface, family, local ip).

    """
    neighbours = hardware_addresses()
    found: dict[tuple[str, int], NetworkKey] = {}
    for nic in nics:
        for name, af, ip in places:
            prefix = next((a.prefix for a in nic.addresses if a.ip == ip), None)
            if name != nic.name or prefix is None:
                continue
            network = str(ip_network(f"{split_scope(ip)[0]}/{prefix}", strict=False))
            gateway = nic.gateways.get(af)
            mac = None if gateway is None else neighbours.get((name, gateway))
            found[name, af] = NetworkKey(name, af, network, gateway, mac)
    return found


class NetworkCache:
    """The facts of the networks that were seen last, at most ``MAX_NETWORKS``.

    Args:
        folder: where the file is; None: nothing on disk.

    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / FILE_NAME
        self._entries: list[Entry] = []

    def get(self, key: NetworkKey) -> PathReport | None:
        """Return a network's facts, without addresses."""
        self._load()
        matching = [entry for entry in self._entries if entry[0].matches(key)]
        # The newest one whose router is known for certain comes first.
        best = [entry for entry in matching if entry[0].hardware == key.hardware] or matching
        return best[-1][1] if best else None

    def put(self, facts: Sequence[tuple[NetworkKey, PathReport]]) -> None:
        """Remember facts; what is no fact about the network's behaviour is left out."""
        self._load()
        seen = datetime.now(UTC).isoformat(timespec="seconds")
        before = self._entries
        for key, report in facts:
            bare = replace(report, local_ip="", external=(), rtt_s=None, taken=())
            self._entries = [e for e in self._entries if not _replaces(key, e[0])]
            self._entries.append((key, bare, seen))
        del self._entries[:-MAX_NETWORKS]
        if _without_times(before) != _without_times(self._entries):
            self._save()

    def _load(self) -> None:
        """Read the file: another node may have written it."""
        if self._path is None:
            return
        try:
            text = read_text(self._path)
            if len(text) > MAX_CHARACTERS:
                raise ValueError(f"more than {MAX_CHARACTERS} characters")
            if not text:
                return
            value = json.loads(text)
            if value["format"] != FORMAT:
                raise ValueError(f"not of format {FORMAT}")
            entries = [_entry(each) for each in list(value["networks"])[-MAX_NETWORKS:]]
        except (ConfigError, ValueError, LookupError, TypeError, RecursionError) as error:
            log.debug("%s is ignored, and written anew: %s", self._path, error)
            return
        self._entries = [entry for entry in entries if entry is not None]

    def _save(self) -> None:
        if self._path is None:
            return
        text = json.dumps(
            {"format": FORMAT, "networks": [_plain(*entry) for entry in self._entries]}, indent=2
        )
        try:
            write_text(self._path, text + "\n")
        except OSError as error:
            log.debug("%s can't be written: %s", self._path, error)


def _without_times(entries: Sequence[Entry]) -> list[Any]:
    """Return what is worth a write: entries, and on which day each was seen."""
    return [(key, report, seen[:10]) for key, report, seen in entries]


def _replaces(new: NetworkKey, old: NetworkKey) -> bool:
    return new.matches(old) and (old.hardware is None or new.hardware == old.hardware)


def _plain(key: NetworkKey, report: PathReport, seen: str) -> dict[str, Any]:
    facts = report.as_dict()
    kept = ("mapping", "filtering", "allocation", "tcp_mapping", "tcp_allocation")
    return {
        **asdict(key),
        "af": af_name(key.af),
        "seen": seen,
        "facts": {name: facts[name] for name in (*_FACTS, *kept)},
    }


def _entry(value: Any) -> Entry | None:
    """Read one entry; None when it has not the form."""
    try:
        af = {af_name(IP4): IP4, af_name(IP6): IP6}[value["af"]]
        texts = [value["interface"], value["network"], value["seen"]]
        optional = [value["gateway"], value["hardware"]]
        if not all(isinstance(each, str) for each in texts) or not all(
            each is None or isinstance(each, str) for each in optional
        ):
            return None
        key = NetworkKey(texts[0], af, texts[1], *optional)
        return key, _report(key, value["facts"]), texts[2]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _report(key: NetworkKey, facts: dict[str, Any]) -> PathReport:
    for name in _FACTS:
        if facts[name] is not None and not isinstance(facts[name], bool):
            raise ValueError(f"{name} is neither true, false nor null")
    return PathReport(
        interface=key.interface,
        af=key.af,
        local_ip="",
        mapping=_maybe(Mapping, facts["mapping"]),
        filtering=_maybe(Filtering, facts["filtering"]),
        allocation=_allocation(facts["allocation"]),
        tcp_mapping=_maybe(Mapping, facts["tcp_mapping"]),
        tcp_allocation=_allocation(facts["tcp_allocation"]),
        **{name: facts[name] for name in _FACTS},
    )


def _maybe(kind: Any, value: Any) -> Any:
    return None if value is None else kind(value)


def _allocation(value: dict[str, Any] | None) -> PortAllocation | None:
    if value is None:
        return None
    numbers = {name: value[name] for name in ("step", "low", "high", "samples")}
    for number in numbers.values():
        if not isinstance(number, int) or not -65535 <= number <= 65535:
            raise ValueError(f"{number!r} is no number of ports")
    return PortAllocation(Allocation(value["kind"]), **numbers)
