"""The settings ``plugin_conf["port_mapping"]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from warpgate import ConfigError
from warpgate_plugin_direct.port_mapping import pcp, ssdp
from warpgate_plugin_direct.port_mapping.model import LEASE_S

PROTOCOLS: Final = ("pcp", "nat-pmp", "upnp")
KEY: Final = "port_mapping"


@dataclass(frozen=True, slots=True)
class Settings:
    """How ports are mapped.

    Attributes:
        protocols: which are tried.
        lease_s: the life to ask routers for, in seconds.
        check_s: how often to look whether the router still has the mapping, in seconds.
        retry_s: the wait after a failure, in seconds; doubled each time, 15 minutes at most.
        pcp_port, ssdp_port: where the router listens.
        announce_port: where it announces that it has restarted.

    """

    protocols: tuple[str, ...] = PROTOCOLS
    lease_s: float = LEASE_S
    check_s: float = 60.0
    retry_s: float = 30.0
    pcp_port: int = pcp.PORT
    ssdp_port: int = ssdp.PORT
    announce_port: int = pcp.CLIENT_PORT

    def wants(self, name: str) -> bool:
        """Return whether a protocol, by its client's name, is to be tried."""
        return name.lower() in self.protocols

    @classmethod
    def make(cls, plugin_conf: Mapping[str, Any]) -> Settings:
        """Take the settings from a node's ``plugin_conf``.

        Raises:
            ConfigError: a setting is unknown, or its value can't be used.

        """
        given = plugin_conf.get(KEY) or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"plugin_conf[{KEY!r}] is {given!r}; expected a mapping")
        known = {field.name for field in fields(cls)}
        for name, value in given.items():
            if name not in known:
                raise ConfigError(
                    f"plugin_conf[{KEY!r}] has no setting {name!r}; known: {', '.join(sorted(known))}"
                )
            wanted = _defect(name, value)
            if wanted:
                raise ConfigError(f"plugin_conf[{KEY!r}][{name!r}] is {value!r}; expected {wanted}")
        return cls(**{**given, "protocols": tuple(given.get("protocols", PROTOCOLS))})


def _defect(name: str, value: Any) -> str:
    """Return what was expected, nothing when the value will do."""
    if name == "protocols":
        listed = isinstance(value, list | tuple) and all(each in PROTOCOLS for each in value)
        return "" if listed else f"a list of some of {', '.join(PROTOCOLS)}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "a number"
    if name.endswith("_port"):
        return "" if isinstance(value, int) and 0 < value < 65536 else "a port"
    return "" if value > 0 else "a positive number of seconds"
