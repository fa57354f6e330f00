"""What surveys have found out about the networks that a node is in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from warpgate.nat.report import NetReport, PathReport
from warpgate.node.network_facts import keeps_mapping

if TYPE_CHECKING:
    from warpgate.node.network_cache import NetworkCache, NetworkKey
    from warpgate.node.network_facts import Seen

Site = tuple[str, int]  # an interface's name, a family

BEHAVIOUR: Final = ("mapping", "filtering", "allocation", "tcp_mapping", "tcp_allocation",
                    "hairpin", "firewall", "several_nats", "rtt_s")  # fmt: skip


@dataclass(slots=True)
class _Known:
    """One network; ``doubts``: the last survey is to be repeated before it is believed."""

    key: NetworkKey
    report: PathReport | None = None
    doubts: bool = False


class KnownNetworks:
    """The facts of each interface and family, with a memory for networks that come back.

    Attributes:
        cache: the memory; None without one.

    """

    def __init__(self, cache: NetworkCache | None = None) -> None:
        self.cache = cache
        self._known: dict[Site, _Known] = {}

    def path(self, site: Site) -> PathReport | None:
        """Return the facts of one interface and family."""
        known = self._known.get(site)
        return None if known is None else known.report

    def paths(self) -> tuple[PathReport, ...]:
        """Return all facts, the most promising interface first."""
        return tuple(each.report for each in self._known.values() if each.report is not None)

    def doubtful(self) -> bool:
        """Return whether a survey is to be repeated soon."""
        return any(each.doubts for each in self._known.values())

    def contradicted(self, site: Site, seen: Seen | None, *, udp_works: bool) -> bool:
        """Return whether a survey's facts can't be true, by how servers see the listening socket."""
        path = self.path(site)
        if path is None:
            return False
        differs = seen is not None and seen.agreed is False and keeps_mapping(path, None)
        return differs or (path.udp is False and udp_works)

    def look(self, keys: Mapping[Site, NetworkKey], ips: Mapping[Site, str]) -> set[Site]:
        """Say which networks these are; returns where they are others than before.

        Args:
            keys: the networks.
            ips: this machine's own addresses in them.

        """
        changed = self._known.keys() - keys.keys()
        known: dict[Site, _Known] = {}
        for site, key in keys.items():
            before = self._known.get(site)
            if before is None or not before.key.matches(key):
                changed.add(site)
                before = _Known(key, None if self.cache is None else self.cache.get(key))
            elif key.hardware is not None:
                before.key = key
            if before.report is not None and before.report.local_ip != ips[site]:
                before.report = replace(before.report, local_ip=ips[site])
            known[site] = before
        self._known = known
        return changed

    def merge(self, report: NetReport, udp_works: Collection[Site], *, online: bool) -> bool:
        """Take over a survey's facts.

        Args:
            report: the survey's.
            udp_works: where servers answer a listening socket over UDP.
            online: whether there is other proof that the internet is reached.

        Returns:
            Whether any server answered.

        """
        answered = False
        fresh = []
        several = sum(each.answered is not None for each in report.servers) > 1
        for path in report.paths:
            site = path.interface, path.af
            known = self._known.get(site)
            if path.nat64 or known is None:
                continue
            before = known.report
            if not path.udp and not path.tcp:
                # Servers that are all dead look like a network that lets nothing through.
                if before is None or before.udp is None:
                    sure = several and online and path.udp is False
                    known.report = path if sure else replace(path, udp=None, tcp=None)
                continue
            answered = True
            if path.udp is False and _doubtful(known, site in udp_works):
                continue
            known.doubts = False
            known.report = filled(path, before)
            fresh.append((known.key, known.report))
        if fresh and self.cache is not None:
            self.cache.put(fresh)
        return answered


def _doubtful(known: _Known, udp_works: bool) -> bool:
    """Return whether "UDP is blocked" should not be believed: a burst of loss looks like it."""
    worked = known.report is not None and known.report.udp is True
    again = not known.doubts
    known.doubts = again and (worked or udp_works)  # it is asked once more, not for ever
    return udp_works or known.doubts


def filled(path: PathReport, before: PathReport | None) -> PathReport:
    """Return a path's facts; what was not found this time is as it was in this network before."""
    if before is None or before.udp is not path.udp:
        return path
    missing = {name: getattr(before, name) for name in BEHAVIOUR if getattr(path, name) is None}
    return replace(path, **missing)
