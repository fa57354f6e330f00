"""What a middlebox is told to do: its configuration, checked, in RFC 4787's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from warpgate_natlab.engine.packet import TCP, UDP, addr_bytes

__all__ = [
    "ADDRESS_AND_PORT_DEPENDENT",
    "ADDRESS_DEPENDENT",
    "ENDPOINT_INDEPENDENT",
    "Allocation",
    "ConfigError",
    "Forward",
    "Policy",
    "Timers",
    "check_keys",
]

# A behaviour is the number of parts of the remote (address, port) it looks at.
ENDPOINT_INDEPENDENT, ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT = 0, 1, 2
BEHAVIOURS = {
    "endpoint-independent": ENDPOINT_INDEPENDENT,
    "address-dependent": ADDRESS_DEPENDENT,
    "address-and-port-dependent": ADDRESS_AND_PORT_DEPENDENT,
}
_PROTOS = {"udp": UDP, "tcp": TCP}
_MODES = ("preserving", "sequential", "block", "random")


class ConfigError(ValueError):
    """A configuration or control value that makes no sense; the text says which."""


def check_keys(what: str, given: Mapping[str, Any], known: Mapping[str, Any] | set[str]) -> None:
    """Raise ConfigError for keys of ``given`` that are not ``known``."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(
            f"{what}: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )


def one_of(what: str, value: object, allowed: tuple[str, ...]) -> str:
    """``value``, when it is one of ``allowed``; else ConfigError."""
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{what}: {value!r} is none of {', '.join(allowed)}")
    return value


def _behaviours(what: str, value: object) -> dict[int, int]:
    """The behaviour of each protocol that ``value`` names."""
    if isinstance(value, str):
        value = dict.fromkeys(_PROTOS, value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what}: a text, or an object with udp and tcp")
    check_keys(what, value, _PROTOS)
    allowed = tuple(BEHAVIOURS)
    return {_PROTOS[name]: BEHAVIOURS[one_of(what, text, allowed)] for name, text in value.items()}


@dataclass(frozen=True, slots=True)
class Timers:
    """Seconds a mapping lives without traffic (RFC 4787 REQ-5, 5382 REQ-5, 5508 REQ-1)."""

    udp_s: float = 300.0
    udp_first_packet_s: float | None = None
    tcp_transitory_s: float = 240.0
    tcp_established_s: float = 7440.0
    icmp_s: float = 60.0

    @classmethod
    def load(cls, given: Mapping[str, Any]) -> Timers:
        """From a configuration object."""
        check_keys("timers", given, {f.name for f in fields(cls)})
        for name, value in given.items():
            if value is None and name == "udp_first_packet_s":
                continue
            if not isinstance(value, (int, float)) or value <= 0:
                raise ConfigError(f"timers.{name}: seconds above 0, not {value!r}")
        return cls(**given)


@dataclass(frozen=True, slots=True)
class Allocation:
    """How external ports are chosen."""

    mode: str = "preserving"
    step: int = 1
    size: int = 512
    blocks: int = 1
    within: str = "random"
    low: int = 1024
    high: int = 65535

    @classmethod
    def load(cls, given: object) -> Allocation:
        """From a configuration value: a mode's name, or an object."""
        if isinstance(given, str):
            given = {"mode": given}
        if not isinstance(given, Mapping):
            raise ConfigError("allocation: a text or an object")
        check_keys("allocation", given, {"mode", "step", "size", "blocks", "within", "range"})
        values = dict(given)
        low, high = values.pop("range", (1024, 65535))
        made = cls(low=low, high=high, **values)
        one_of("allocation.mode", made.mode, _MODES)
        one_of("allocation.within", made.within, ("random", "sequential"))
        if not 1 <= low <= high <= 65535:
            raise ConfigError("allocation.range: 1 <= low <= high <= 65535")
        if made.mode == "block" and not 1 <= made.size <= high + 1 - low:
            raise ConfigError("allocation.size: from 1 to the ports in range")
        if made.step == 0 or made.blocks < 1:
            raise ConfigError("allocation: step may not be 0, blocks not below 1")
        return made


@dataclass(frozen=True, slots=True)
class Forward:
    """A static mapping: (protocol, external port) to an inside endpoint."""

    proto: int
    external_port: int
    to: bytes
    port: int

    @classmethod
    def load(cls, given: Mapping[str, Any]) -> Forward:
        """From a configuration object."""
        check_keys("forward", given, {"proto", "external_port", "to", "port"})
        proto = _PROTOS[one_of("forward.proto", given.get("proto"), tuple(_PROTOS))]
        port = int(given["port"])
        external = int(given.get("external_port", port))
        if not 1 <= port <= 65535 or not 1 <= external <= 65535:
            raise ConfigError("forward: ports are from 1 to 65535")
        return cls(proto, external, addr_bytes(given["to"]), port)


def _ports(what: str, value: object) -> frozenset[int] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(isinstance(p, int) for p in value):
        raise ConfigError(f"{what}: null or a list of ports")
    return frozenset(value)


@dataclass(slots=True)
class Policy:
    """Everything nat, firewall and nat64 share; the engine's docstring explains each key."""

    mapping: dict[int, int] = field(default_factory=lambda: {UDP: 0, TCP: 0})
    filtering: dict[int, int] = field(default_factory=lambda: {UDP: 2, TCP: 2})
    allocation: Allocation = field(default_factory=Allocation)
    pooling: str = "paired"
    hairpin: bool = True
    stray_syn: str = "drop"
    stray_icmp_s: float = 6.0
    stray_udp: str = "drop"
    udp_ports: frozenset[int] | None = None
    tcp_ports: frozenset[int] | None = None
    icmp_echo: bool = True
    on_blocked: str = "drop"
    tcp_midstream: str = "drop"
    timers: Timers = field(default_factory=Timers)
    inbound_refresh: bool = True
    fragments: str = "reassemble"
    max_per_host: int = 0
    answer_ping: bool = True

    _CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "pooling": ("paired", "arbitrary"),
        "stray_syn": ("drop", "rst", "icmp"),
        "stray_udp": ("drop", "icmp"),
        "on_blocked": ("drop", "reject"),
        "tcp_midstream": ("drop", "rst", "accept"),
        "fragments": ("reassemble", "drop"),
    }

    @classmethod
    def keys(cls) -> set[str]:
        """The keys :meth:`apply` takes."""
        return {f.name for f in fields(cls)}

    def apply(self, given: Mapping[str, Any]) -> None:
        """Change what ``given`` names; nothing changes when it raises ConfigError."""
        check_keys("node", given, self.keys())
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name in ("mapping", "filtering"):
                values[name] = getattr(self, name) | _behaviours(name, value)
            elif name == "allocation":
                values[name] = Allocation.load(value)
            elif name == "timers":
                old = {f.name: getattr(self.timers, f.name) for f in fields(Timers)}
                values[name] = Timers.load(old | dict(value))
            elif name in ("udp_ports", "tcp_ports"):
                values[name] = _ports(name, value)
            elif name in self._CHOICES:
                values[name] = one_of(name, value, self._CHOICES[name])
            elif isinstance(getattr(self, name), bool):
                if not isinstance(value, bool):
                    raise ConfigError(f"{name}: true or false, not {value!r}")
                values[name] = value
            else:
                if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
                    raise ConfigError(f"{name}: a number from 0, not {value!r}")
                values[name] = value
        for name, value in values.items():
            setattr(self, name, value)

    def describe(self) -> dict[str, Any]:
        """The whole policy as a configuration object."""
        result: dict[str, Any] = {}
        words = {number: text for text, number in BEHAVIOURS.items()}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in ("mapping", "filtering"):
                value = {name: words[value[proto]] for name, proto in _PROTOS.items()}
            elif isinstance(value, frozenset):
                value = sorted(value)
            elif isinstance(value, (Allocation, Timers)):
                value = {f.name: getattr(value, f.name) for f in fields(value)}
                if item.name == "allocation":
                    value["range"] = [value.pop("low"), value.pop("high")]
            result[item.name] = value
        return result
