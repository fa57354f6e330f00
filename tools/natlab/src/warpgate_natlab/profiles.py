"""The named networks that a host can be behind, as data, with what a probe must find there.

To add one: write a :class:`Profile` with an :class:`Expectation` and put it into ``PROFILES``; the
selftest and the tests take it from there. ``docs/laboratory.md`` has the pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

EI: Final = "endpoint-independent"
AD: Final = "address-dependent"
APD: Final = "address-and-port-dependent"

ACCESS_DELAY_MS: Final = 20.0
"""One way over a host's access link."""
SERVER_DELAY_MS: Final = 5.0
"""One way between the core of the internet and the servers: 50 ms from host to broker to host."""
BLOCK_SIZE: Final = 512
NAT64_PREFIX: Final = "64:ff9b::/96"

NatConf = dict[str, Any]


@dataclass(frozen=True)
class Expectation:
    """What probing a profile in one family must find; the words of RFC 4787.

    Attributes:
        mapping: ``none`` (no translation), one of the three behaviours, or ``blocked``.
        filtering: one of the three behaviours, ``none`` (everything comes in) or ``blocked``.
        allocation: ``none``, ``preserving``, ``sequential``, ``block``, ``random`` or ``blocked``.
        hairpin: ``yes``, ``no``, or ``n/a`` where nothing is translated.
        tcp: remote ports that can be reached: ``all``, ``443``.
        syn: what becomes of an inbound SYN nobody asked for: ``accept``, ``drop``, ``rst``.
        timer: whether UDP mappings end when their (shortened) time is over: ``yes``, ``n/a``.
        tcp_timer: the same for established TCP connections.
        tcp_only_mapping: the mapping of TCP where UDP is blocked.

    """

    mapping: str
    filtering: str
    allocation: str
    hairpin: str
    tcp: str = "all"
    syn: str = "drop"
    timer: str = "yes"
    tcp_timer: str = "yes"
    tcp_only_mapping: str = ""

    @property
    def tcp_mapping(self) -> str:
        """The mapping behaviour for TCP: that for UDP, unless UDP is blocked."""
        return self.tcp_only_mapping or self.mapping

    @property
    def tcp_filtering(self) -> str:
        """The filtering behaviour for TCP: that for UDP, unless UDP is blocked."""
        return APD if self.filtering == "blocked" else self.filtering

    @property
    def syn_mapped(self) -> str:
        """What becomes of a stranger's SYN to a mapped endpoint."""
        return "accept" if self.tcp_filtering in ("none", EI) else self.syn


@dataclass(frozen=True)
class Profile:
    """One named network.

    Attributes:
        name, about: for people.
        nat: settings of the home's user-space NAT; None: there is none.
        carrier: settings of a second NAT outside of it; None: there is none.
        firewall: settings of a stateful firewall for ``firewall_families``; None: there is none.
        kernel: the kernel's rule set instead (see ``kernel_nat``); None: user space.
        families: IP versions of the host.
        nat64: the IPv6 host reaches IPv4 through NAT64, with DNS64.
        nat64_prefix: by this prefix, of 96 bits.
        upnp: a miniupnpd runs on the router.
        expect: what a probe must find, by IP version.

    """

    name: str
    about: str
    expect: dict[int, Expectation]
    nat: NatConf | None = None
    carrier: NatConf | None = None
    firewall: NatConf | None = None
    firewall_families: tuple[int, ...] = (4, 6)
    kernel: str | None = None
    families: tuple[int, ...] = (4,)
    nat64: bool = False
    nat64_prefix: str = NAT64_PREFIX
    upnp: bool = False

    @property
    def translated(self) -> bool:
        """Whether the host's IPv4 address is a private one."""
        return self.nat is not None or self.kernel is not None

    @property
    def https_only(self) -> bool:
        """Whether nothing but TCP to port 443 goes out."""
        return all(expected.tcp == "443" for expected in self.expect.values())


def _nat(
    mapping: str, filtering: str, allocation: Any = "preserving", **more: Any
) -> dict[str, Any]:
    return {
        "mapping": mapping,
        "filtering": filtering,
        "allocation": allocation,
        "hairpin": False,
        "stray_syn": "drop",
        **more,
    }


_CONE = _nat(EI, APD)
_BLOCKED = Expectation("blocked", "blocked", "blocked", "no", timer="n/a", tcp_only_mapping=EI)
_PORT_RESTRICTED = Expectation(EI, APD, "preserving", "no")
_FIREWALLED = Expectation("none", APD, "none", "n/a")
# Carriers forget a mapping that was used once sooner than one that carries a conversation.
_CARRIER_TIMERS = {"udp_s": 120, "udp_first_packet_s": 15}


def _symmetric(name: str, about: str, allocation: Any, found: str) -> Profile:
    return Profile(
        name, about, {4: Expectation(APD, APD, found, "no")}, nat=_nat(APD, APD, allocation)
    )


def symmetric_block(size: int = BLOCK_SIZE) -> Profile:
    """Return ``symmetric-block`` with blocks of another size (in ports)."""
    return _symmetric(
        "symmetric-block" if size == BLOCK_SIZE else f"symmetric-block-{size}",
        f"a new port for every destination, at random from the host's own {size} ports",
        {"mode": "block", "size": size, "blocks": 1, "within": "random"},
        "block",
    )


_ALL: Final = (
    Profile(
        "open",
        "a public address, nothing in the way",
        {4: Expectation("none", "none", "none", "n/a", syn="accept", timer="n/a", tcp_timer="n/a")},
    ),
    Profile(
        "open-firewall",
        "a public address behind a stateful firewall",
        {4: _FIREWALLED},
        firewall={"filtering": APD, "stray_syn": "drop"},
    ),
    Profile(
        "fullcone",
        "one port for all destinations; everybody may answer",
        {4: Expectation(EI, EI, "preserving", "yes")},
        nat=_nat(EI, EI, hairpin=True),
    ),
    Profile(
        "addr-restricted",
        "one port for all destinations; addresses that were written to may answer",
        {4: Expectation(EI, AD, "preserving", "yes")},
        nat=_nat(EI, AD, hairpin=True),
    ),
    Profile(
        "port-restricted",
        "one port for all destinations; only the very endpoint that was written to may answer",
        {4: _PORT_RESTRICTED},
        nat=_CONE,
    ),
    _symmetric(
        "symmetric-random", "a new port for every destination, at random", "random", "random"
    ),
    _symmetric(
        "symmetric-sequential",
        "a new port for every destination, the next one up",
        {"mode": "sequential", "step": 1},
        "sequential",
    ),
    symmetric_block(),
    Profile(
        "cgnat",
        "a port-restricted home router behind a carrier's NAT of the same behaviour",
        {4: Expectation(EI, APD, "random", "yes")},
        nat=_CONE,
        carrier=_nat(EI, APD, "random", hairpin=True, timers=_CARRIER_TIMERS),
    ),
    Profile(
        "cgnat-symmetric",
        "a port-restricted home router behind a carrier's symmetric NAT",
        {4: Expectation(APD, APD, "random", "no")},
        nat=_CONE,
        carrier=_nat(APD, APD, "random", timers=_CARRIER_TIMERS),
    ),
    Profile(
        "udp-blocked",
        "port-restricted for TCP; UDP goes nowhere",
        {4: _BLOCKED},
        nat={**_CONE, "udp_ports": []},
    ),
    Profile(
        "https-only",
        "only TCP to port 443 goes out",
        {4: replace(_BLOCKED, tcp="443")},
        nat={**_CONE, "udp_ports": [], "tcp_ports": [443]},
    ),
    Profile(
        "rst-on-stray",
        "port-restricted; an inbound SYN that nobody asked for is answered with RST",
        {4: replace(_PORT_RESTRICTED, syn="rst")},
        nat={**_CONE, "stray_syn": "rst"},
    ),
    Profile(
        "linux",
        "the kernel's masquerade: keeps the port, filters by connection",
        {4: _PORT_RESTRICTED},
        kernel="masquerade",
    ),
    Profile(
        "linux-random",
        "the kernel's masquerade with fully-random ports",
        {4: Expectation(APD, APD, "random", "no")},
        kernel="random",
    ),
    Profile(
        "linux-block",
        f"the kernel's masquerade into {BLOCK_SIZE} ports, at random",
        {4: Expectation(APD, APD, "block", "no")},
        kernel="block",
    ),
    Profile(
        "linux-upnp",
        "the kernel's masquerade, and miniupnpd maps ports: UPnP IGD, NAT-PMP, PCP",
        {4: _PORT_RESTRICTED},
        kernel="upnp",
        upnp=True,
    ),
    Profile(
        "v6-firewalled",
        "IPv6 only, behind a stateful firewall",
        {6: _FIREWALLED},
        families=(6,),
        firewall={"filtering": APD, "stray_syn": "drop"},
    ),
    Profile(
        "v6-only-nat64",
        "IPv6 only behind a stateful firewall; IPv4 through NAT64 and DNS64",
        {6: _FIREWALLED, 64: Expectation(EI, APD, "random", "no")},
        families=(6,),
        firewall={"filtering": APD, "stray_syn": "drop"},
        nat64=True,
    ),
    Profile(
        "dual-stack",
        "IPv4 behind a port-restricted NAT, IPv6 behind a stateful firewall",
        {4: _PORT_RESTRICTED, 6: _FIREWALLED},
        families=(4, 6),
        nat=_CONE,
        firewall={"filtering": APD, "stray_syn": "drop"},
        firewall_families=(6,),
    ),
)
PROFILES: Final[dict[str, Profile]] = {profile.name: profile for profile in _ALL}

GRID: Final = (
    "open", "fullcone", "addr-restricted", "port-restricted",
    "symmetric-random", "symmetric-sequential", "cgnat", "udp-blocked",
)  # fmt: skip
"""The eight profiles whose 36 pairs the project's figures are about."""


@dataclass(frozen=True)
class Pair:
    """Which networks two hosts are in.

    Attributes:
        name, about: for people.
        a, b: the profiles of each host's interfaces, the one with the better default route first.
        same_lan: both are in one network, behind ``a``'s profile.

    """

    name: str
    about: str
    a: tuple[Profile, ...]
    b: tuple[Profile, ...]
    same_lan: bool = False


def profile(name: str | Profile) -> Profile:
    """Return a profile by its name.

    ``symmetric-block-<n>`` is ``symmetric-block`` with blocks of n ports.

    Raises:
        ValueError: there is none of that name; the text lists those there are.

    """
    if isinstance(name, Profile):
        return name
    if name in PROFILES:
        return PROFILES[name]
    base, _, size = name.rpartition("-")
    if base == "symmetric-block" and size.isdigit() and 0 < int(size) <= 65536 - 1024:
        return symmetric_block(int(size))
    raise ValueError(f"no profile is called {name!r}; there are: {', '.join(PROFILES)}")


def pair_of(a: str | Profile, b: str | Profile) -> Pair:
    """Return the pair of two hosts in networks of their own."""
    first, second = profile(a), profile(b)
    name = f"{first.name} x {second.name}"
    return Pair(name, f"{first.about} / {second.about}", (first,), (second,))


_HAIRPIN = replace(PROFILES["port-restricted"], name="port-restricted-hairpin",
                   nat={**_CONE, "hairpin": True})  # fmt: skip
_PAIRS: Final = (
    Pair(
        "same-lan",
        "both hosts in one network, behind one port-restricted NAT that hairpins",
        (_HAIRPIN,),
        (_HAIRPIN,),
        same_lan=True,
    ),
    Pair(
        "same-lan-no-hairpin",
        "both hosts in one network, behind one port-restricted NAT that does not hairpin",
        (PROFILES["port-restricted"],),
        (PROFILES["port-restricted"],),
        same_lan=True,
    ),
    Pair(
        "two-nics",
        "a has two interfaces: the default route behind symmetric-random, the other port-restricted",
        (PROFILES["symmetric-random"], PROFILES["port-restricted"]),
        (PROFILES["port-restricted"],),
    ),
)
PAIRS: Final[dict[str, Pair]] = {pair.name: pair for pair in _PAIRS}


def pair(name: str) -> Pair:
    """Return a named pair, or that of two profiles written ``a x b``.

    Raises:
        ValueError: there is none of that name.

    """
    if name in PAIRS:
        return PAIRS[name]
    first, cross, second = name.partition(" x ")
    if cross:
        return pair_of(first.strip(), second.strip())
    raise ValueError(f"no pair is called {name!r}; there are: {', '.join(PAIRS)}")
