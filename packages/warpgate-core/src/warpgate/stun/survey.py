"""The whole machine's NAT report: interfaces, names of servers, NAT64, and a probe of each path."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ..events import Counters
from ..nat.classify import nat64_prefix
from ..nat.report import NetReport, PathReport, ServerReport
from ..net.addresses import is_ip, system_address, user_address
from ..net.constants import IP4, IP6, af_name
from ..net.datagram import DatagramSocket
from ..net.nic import Interface, list_interfaces
from ..net.resolve import look_up
from ..protocol.ip import is_link_local, is_loopback
from ..server_urls import STUN_PORT, join_host_port, parse_host_port
from .attributes import Address
from .client import mapped_addresses, tcp_mapped_addresses
from .probe import PathResult, Place, probe_path
from .transaction import Transaction

MAX_PLACES: Final = 6
LOOKUP_S: Final = 0.4  # names that take longer are left out
ASK_S: Final = 2.0
LOOKUP_GRACE_S: Final = 0.1  # after the first one
NAT64_NAME: Final = "ipv4only.arpa"  # RFC 7050


def usable_places(interfaces: Iterable[Interface] | None = None) -> list[Place]:
    """Return from where a probe can send: interfaces with a default route, one address a family.

    Where none has one (or the system doesn't say), all that have more than a link-local address.
    """
    found = list_interfaces() if interfaces is None else list(interfaces)
    outside = [nic for nic in found if not nic.loopback]
    every = [(nic, af) for nic in outside for af in nic.supported()]
    leading = [(nic, af) for nic, af in every if nic.has_default(af)] or every
    places: list[Place] = []
    for nic, af in leading:
        ip = nic.global_ip(af) or nic.local_ip(af) if af == IP6 else nic.local_ip(af)
        if ip is not None and not is_link_local(ip):
            places.append(Place(nic.name, af, ip))
    return places[:MAX_PLACES]


async def survey(
    servers: Sequence[str],
    *,
    places: Sequence[Place] | None = None,
    gateway_external_ip: str | None = None,
    counters: Counters | None = None,
) -> NetReport:
    """Find out what the NATs of this machine do, in about a second.

    Args:
        servers: STUN servers, ``host[:port]``.
        places: from where; None: every interface with a way out.
        gateway_external_ip: what the router calls its external address, where it says so.
        counters: counts what was ignored, as ``stun-…``.

    Raises:
        ValueError: a server's text does not have the form.

    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    named = {text: parse_host_port(text, STUN_PORT) for text in dict.fromkeys(servers)}
    sites = list(usable_places() if places is None else places)
    found, prefix, asked = await _lookups(named, any(site.af == IP6 for site in sites))
    if prefix is not None and any(family == IP4 for family, _ in _flat(found)):
        sites += [Place(s.interface, s.af, s.ip, prefix) for s in sites if s.af == IP6]
    results = await asyncio.gather(
        *(
            probe_path(
                site,
                _for(site, found),
                gateway_external_ip=gateway_external_ip,
                counters=counters,
            )
            for site in sites
        )
    )
    reports = tuple(each.report for each in results)
    return NetReport(
        paths=reports,
        servers=tuple(_server(text, found, results, sites) for text in named),
        nat64_prefix=prefix,
        nat64=asked if prefix is None else True,
        missing=tuple(_missing(named, found, reports)),
        seconds=loop.time() - started,
    )


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """What one STUN server said.

    Attributes:
        mapped: where the server sees this machine; None: it did not answer.
        over: ``udp`` or, where nothing came over that, ``tcp``.
        rtt_s: one round trip, in seconds.
        error: why there is no answer.

    """

    mapped: Address | None = None
    over: str = ""
    rtt_s: float = 0.0
    error: str = ""


async def ask_server(
    server: str, *, places: Sequence[Place] | None = None, timeout_s: float = ASK_S
) -> ServerAnswer:
    """Ask one STUN server where it sees this machine; takes twice ``timeout_s`` at the most.

    Args:
        server: ``host[:port]``.
        places: from where; None: every interface with a way out, loopback where there is none.
        timeout_s: for its name, and then for its answer.

    Raises:
        ValueError: the server's text does not have the form.

    """
    sites = list(usable_places() if places is None else places)
    named = {server: parse_host_port(server, STUN_PORT)}
    found, prefix, _ = await _lookups(named, any(s.af == IP6 for s in sites), timeout_s)
    if not found:
        return ServerAnswer(error="its name was not found")
    addresses = found[server]
    if places is None and (not sites or any(is_loopback(ip) for _, (ip, _) in addresses)):
        sites += [Place("loopback", IP4, "127.0.0.1"), Place("loopback", IP6, "::1")]
    if prefix is not None:
        sites += [Place(s.interface, s.af, s.ip, prefix) for s in sites if s.af == IP6]
    pairs = [(site.ip, address) for site in sites for address in _for(site, found)]
    if not pairs:
        families = " and ".join(dict.fromkeys(af_name(af) for af, _ in addresses))
        return ServerAnswer(error=f"it has only {families}, by which this machine reaches nothing")
    tasks = {
        over: [asyncio.create_task(ask(ip, address, timeout_s)) for ip, address in pairs]
        for over, ask in (("udp", _ask_udp), ("tcp", _ask_tcp))
    }
    errors: list[str] = []
    try:
        for over, asking in tasks.items():
            answers = await asyncio.gather(*asking)
            if good := [each for each in answers if each.mapped is not None]:
                best = min(good, key=lambda each: each.rtt_s)
                return replace(best, over=over)
            errors += [f"{each.error} over {over.upper()}" for each in answers]
    finally:
        every = [task for asking in tasks.values() for task in asking]
        for task in every:
            task.cancel()
        await asyncio.gather(*every, return_exceptions=True)
    return ServerAnswer(error=", ".join(dict.fromkeys(errors)))


async def _ask_udp(ip: str, server: Address, timeout_s: float) -> ServerAnswer:
    af = IP6 if ":" in ip else IP4
    sock = socket.socket(af, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.bind(system_address(af, (ip, 0)))
        link = await DatagramSocket.open(sock)
    except OSError as error:
        sock.close()
        return ServerAnswer(error=error.strerror or str(error))
    try:
        (answer,) = await mapped_addresses(link, [server], timeout_s=timeout_s)
    finally:
        link.close()
    return ServerAnswer(answer.mapped, "", answer.rtt_s or 0.0, answer.error)


async def _ask_tcp(ip: str, server: Address, timeout_s: float) -> ServerAnswer:
    (answer,) = await tcp_mapped_addresses((ip, 0), [server], timeout_s=timeout_s)
    return ServerAnswer(answer.mapped, "", answer.rtt_s or 0.0, answer.error)


async def server_addresses(servers: Sequence[str]) -> list[tuple[int, Address]]:
    """Return (family, address) of all STUN servers whose names are found in ``LOOKUP_S``.

    Raises:
        ValueError: a server's text does not have the form.

    """
    named = {text: parse_host_port(text, STUN_PORT) for text in dict.fromkeys(servers)}
    return list(dict.fromkeys(_flat((await _lookups(named, ipv6=False))[0])))


Found = dict[str, list[tuple[int, Address]]]


def _flat(found: Found) -> list[tuple[int, Address]]:
    return [each for several in found.values() for each in several]


def _for(site: Place, found: Found) -> list[Address]:
    family = IP4 if site.nat64 is not None else site.af
    return list(dict.fromkeys(site.reach(a) for af, a in _flat(found) if af == family))


def _missing(named: dict[str, Address], found: Found, paths: Sequence[PathReport]) -> Iterable[str]:
    if not named:
        yield (
            "no STUN server is configured, so UDP, mapping and filtering are not known: set "
            "WARPGATE_STUN=host:port,… or give --stun"
        )
    elif len(named) == 1:
        yield "only one STUN server is configured: with two, mapping is known for certain"
    for text in named:
        if not found.get(text):
            yield f"the name of {text} was not found in time: check it, and this machine's DNS"
    families = {family for family, _ in _flat(found)}
    for path in paths:
        if named and families and path.af not in families:
            yield f"no STUN server has an {af_name(path.af)} address: {path.interface} not tested"
        elif path.mapping is not None and path.filtering is None:
            yield f"no server answers by RFC 5780: filtering on {path.interface} is not known"


def _server(
    text: str, found: Found, results: Sequence[PathResult], sites: Sequence[Place]
) -> ServerReport:
    mine: list[Transaction] = []
    for site, result in zip(sites, results, strict=True):
        family = IP4 if site.nat64 is not None else site.af
        own = {site.reach(address) for af, address in found.get(text, []) if af == family}
        mine += [each for each in result.transactions if each.server in own]
    good = [each for each in mine if each.mapped is not None]
    alternates = [each.alternate_server for each in mine if each.alternate_server is not None]
    error = "" if good else next((each.error for each in mine if each.error), "")
    if not mine:
        error = "not asked" if found.get(text) else "its name was not found"
    if alternates:
        error = f"ALTERNATE-SERVER {join_host_port(*alternates[0])}"
    return ServerReport(
        server=text,
        answered=bool(good) if mine else None,
        rtt_s=min((each.rtt_s for each in good if each.rtt_s is not None), default=None),
        filtering_test=any(each.other_address for each in good) if good else None,
        software=next((each.software for each in good if each.software), ""),
        error=error,
    )


async def _lookups(
    named: dict[str, Address], ipv6: bool, lookup_s: float = LOOKUP_S
) -> tuple[Found, str | None, bool | None]:
    """Return the servers' addresses, the NAT64 prefix, and False when there certainly is none."""
    loop = asyncio.get_running_loop()
    found: Found = {}
    pending: dict[str, asyncio.Task[list[tuple[int, Address]]]] = {}
    for text, (host, port) in named.items():
        if is_ip(host):
            found[text] = [(IP6 if ":" in host else IP4, (host, port))]
        else:
            pending[text] = loop.create_task(_lookup(host, port, lookup_s))
    special = None
    if ipv6:
        special = loop.create_task(_lookup(NAT64_NAME, 0, lookup_s, socket.AF_INET6))
    deadline = loop.time() + lookup_s
    waiting = set(pending.values()) | ({special} if special is not None else set())
    try:
        while waiting and (left := deadline - loop.time()) > 0:
            done, waiting = await asyncio.wait(
                waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            if any(not each.exception() and each is not special for each in done):
                deadline = min(deadline, loop.time() + LOOKUP_GRACE_S)
    finally:
        for late in waiting:
            late.cancel()
    for text, future in pending.items():
        if future.done() and not future.exception():
            found[text] = future.result()
    if special is None or special in waiting:
        return found, None, None
    error = special.exception()
    if error is not None:
        absent = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
        certain = isinstance(error, socket.gaierror) and error.errno in absent
        return found, None, False if certain else None
    prefix = nat64_prefix(address[0] for _, address in special.result())
    return found, prefix, None if prefix else False


async def _lookup(
    host: str, port: int, timeout_s: float, family: int = socket.AF_UNSPEC
) -> list[tuple[int, Address]]:
    entries = await look_up(host, port, family=family, kind=socket.SOCK_DGRAM, timeout_s=timeout_s)
    return [(int(e[0]), user_address(e[4])) for e in entries if e[0] in (IP4, IP6)]
