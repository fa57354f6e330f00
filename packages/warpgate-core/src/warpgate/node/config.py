"""A node's settings, merged and checked.

- ``reuse_addr``: set SO_REUSEADDR on listeners
- ``enable_upnp``: map the listening port (UPnP IGD, NAT-PMP, PCP)
- ``sig_pipe_no``: how many brokers to stay connected to; 0 = no MQTT
- ``brokers``, ``stun_servers``, ``turn_servers``, ``ntp_servers``: lists, in the forms of
  :mod:`warpgate.server_urls`; an empty list = none; None = the environment (``WARPGATE_BROKERS``,
  ``WARPGATE_STUN``, ``WARPGATE_TURN``, ``WARPGATE_NTP``: comma separated, empty = none), read when
  the node is made, else the ``DEFAULT_…`` lists of this module
- ``install_path``: folder of the key file and the pins; None = the platform's data folder,
  ``":memory:"`` = nothing on disk
- ``init_clock_skew``: measure the clock's error at start
- ``enable_punching``: offer strategies of the phases punch and spray
- ``enable_nickname``: publish and look up names
- ``enable_stun_clients``: ask STUN servers for mapped addresses
- ``enable_turn``: offer relays
- ``plugins``: allow-list of strategies and entry points, in order of preference; None = all
- ``block_plugins``: strategies and entry points that are not loaded
- ``plugin_dirs``: folders with further plugins
- ``plugin_conf``: strategies' own settings, by strategy; not checked
- ``seal``: encryption of pipes between nodes: ``"require"``, ``"prefer"`` or ``"off"``
- ``accept_plain``: plain TCP and UDP reach the callbacks
- ``allow``: node ids or pinned names that may connect; None = anyone
- ``relay``: ``"last"``, ``"prefer"`` or ``"never"``
- ``relay_after``: seconds after which relays may start
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import platformdirs
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from warpgate.errors import ConfigError
from warpgate.node.node_defs import NODE_CONF
from warpgate.server_urls import (
    NTP_PORT,
    STUN_PORT,
    TurnServer,
    join_host_port,
    parse_broker,
    parse_host_port,
    parse_turn,
    redact,
    scheme_only,
)

# No third party's servers are used unless somebody asks for them: a broker or a STUN server learns
# who talks to whom, and public ones come and go.
DEFAULT_BROKERS: Final[tuple[str, ...]] = ()
DEFAULT_STUN_SERVERS: Final[tuple[str, ...]] = ()
DEFAULT_TURN_SERVERS: Final[tuple[str, ...]] = ()
DEFAULT_NTP_SERVERS: Final[tuple[str, ...]] = ()

MEMORY: Final = ":memory:"

_SERVERS: Final = {
    "brokers": ("WARPGATE_BROKERS", DEFAULT_BROKERS),
    "stun_servers": ("WARPGATE_STUN", DEFAULT_STUN_SERVERS),
    "turn_servers": ("WARPGATE_TURN", DEFAULT_TURN_SERVERS),
    "ntp_servers": ("WARPGATE_NTP", DEFAULT_NTP_SERVERS),
}
_SECRET: Final = ("brokers", "turn_servers", "stun_servers", "ntp_servers", "plugin_conf")
_NODE_ID_OR_NAME = re.compile(r"[^\s\x00-\x1f\x7f]{1,255}")


class NodeConfig(Mapping[str, Any]):
    """The checked settings of a node: a read-only mapping with every key of ``NODE_CONF``.

    Lists are tuples in here. ``brokers`` holds URLs, ``stun_servers`` and ``ntp_servers`` hold
    ``host:port`` with the port filled in, ``turn_servers`` holds
    :class:`~warpgate.server_urls.TurnServer`; ``install_path`` is a path or ``":memory:"``.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = MappingProxyType(dict(values))

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shown = {
            **self._values,
            "brokers": tuple(map(redact, self._values["brokers"])),
            "plugin_conf": dict.fromkeys(self._values["plugin_conf"], "…"),
        }
        return f"NodeConfig({shown!r})"

    @property
    def folder(self) -> Path | None:
        """Where the node keeps its key and pins; None for in memory."""
        path = self._values["install_path"]
        return None if path == MEMORY else Path(path)


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _broker(text: str) -> str:
    parse_broker(text)
    return text.strip()


def _stun(text: str) -> str:
    return join_host_port(*parse_host_port(text, STUN_PORT))


def _ntp(text: str) -> str:
    return join_host_port(*parse_host_port(text, NTP_PORT))


def _each(parse: Any, kinds: Any = str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not isinstance(value, list | tuple) or not all(isinstance(v, kinds) for v in value):
            raise PydanticCustomError("list", "no list of the right kind")
        parsed = []
        for number, entry in enumerate(value, 1):
            try:
                parsed.append(parse(entry))
            except ValueError as error:
                raise ValueError(f"entry {number}: {error}") from None
        return tuple(parsed)

    return BeforeValidator(check)


def _turn(server: str | Mapping[str, Any] | TurnServer) -> TurnServer:
    return server if isinstance(server, TurnServer) else parse_turn(server)


def _folder(value: Any) -> Any:
    if value is None:
        return platformdirs.user_data_path("warpgate", appauthor=False)
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise PydanticCustomError("path", "no path")
    return value if value == MEMORY else Path(value).expanduser()


def _allowed(name: str) -> str:
    if not _NODE_ID_OR_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is neither a node id nor a name")
    return name


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class _Settings(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)

    reuse_addr: bool
    enable_upnp: bool
    sig_pipe_no: Annotated[int, Field(ge=0)]
    brokers: Annotated[tuple[str, ...], _each(_broker)]
    stun_servers: Annotated[tuple[str, ...], _each(_stun)]
    turn_servers: Annotated[tuple[TurnServer, ...], _each(_turn, (str, Mapping, TurnServer))]
    ntp_servers: Annotated[tuple[str, ...], _each(_ntp)]
    install_path: Annotated[str | Path, BeforeValidator(_folder)]
    init_clock_skew: bool
    enable_punching: bool
    enable_nickname: bool
    enable_stun_clients: bool
    enable_turn: bool
    plugins: Names | None
    block_plugins: Names
    plugin_dirs: Annotated[tuple[str | Path, ...], BeforeValidator(_listed)]
    plugin_conf: dict[str, Any]
    seal: Literal["require", "prefer", "off"]
    accept_plain: bool
    allow: Annotated[tuple[str, ...], _each(_allowed)] | None
    relay: Literal["last", "prefer", "never"]
    relay_after: Annotated[float, Field(ge=0, allow_inf_nan=False)]


_EXPECTED: Final = {
    bool: "True or False",
    "sig_pipe_no": "a whole number from 0 up",
    "brokers": "a list of broker URLs, or None",
    "stun_servers": "a list of host:port, or None",
    "turn_servers": "a list of TURN URLs or dicts, or None",
    "ntp_servers": "a list of host[:port], or None",
    "install_path": 'a folder, ":memory:", or None',
    "plugins": "a list of names, or None",
    "block_plugins": "a list of names",
    "plugin_dirs": "a list of folders",
    "plugin_conf": "a dict with strategies' names as keys",
    "seal": '"require", "prefer" or "off"',
    "allow": "a list of node ids or names, or None",
    "relay": '"last", "prefer" or "never"',
    "relay_after": "a number of seconds from 0 up",
}


def make_config(
    conf: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> NodeConfig:
    """Merge settings over ``NODE_CONF`` and check them.

    Args:
        conf: any of the keys; a :class:`NodeConfig` is returned as it is.
        environ: where servers are looked up that ``conf`` leaves at None; the process's
            environment when None.

    Raises:
        ConfigError: an unknown key, with the nearest known one, or a value that can't be used; one
            line per value, with what is expected and how to mend it.

    """
    if isinstance(conf, NodeConfig):
        return conf
    if conf is not None and not isinstance(conf, Mapping):
        raise ConfigError(
            f"conf is a {type(conf).__name__}, expected a dict; copy NODE_CONF and change it"
        )
    given = dict(conf or {})
    for key in given:
        if key not in NODE_CONF:
            raise ConfigError(_unknown_key(key))
    environ = os.environ if environ is None else environ
    settings = {**NODE_CONF, **given}
    origins = {}
    for key, (variable, default) in _SERVERS.items():
        if settings[key] is None and variable in environ:
            parts = environ[variable].split(",")
            settings[key] = [part.strip() for part in parts if part.strip()]
            origins[key] = variable
        elif settings[key] is None:
            settings[key] = default
    try:
        checked = _Settings.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_describe(error, settings, origins)) from None
    values = {key: getattr(checked, key) for key in NODE_CONF}
    values["plugin_conf"] = MappingProxyType(dict(values["plugin_conf"]))
    return NodeConfig(values)


def _unknown_key(key: object) -> str:
    near = difflib.get_close_matches(str(key), NODE_CONF, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(NODE_CONF)}."
    return f"unknown setting {key!r}: {hint} Strategies' own settings belong into 'plugin_conf'"


def _describe(
    error: ValidationError, settings: Mapping[str, Any], origins: Mapping[str, str]
) -> str:
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False, include_input=False):
        key = str(problem["loc"][0])
        if key in lines:  # pydantic has a line for every branch of a union
            continue
        usual = NODE_CONF[key]
        expected = _EXPECTED.get(key, _EXPECTED[bool])
        why = problem.get("ctx", {}).get("error")
        reason = f"{why}; expected {expected}" if why is not None else f"expected {expected}"
        origin = origins.get(key, key)
        mend = "unset it" if origin != key else f"use {usual!r} or leave it out"
        lines[key] = (
            f"{origin} = {_shown(key, settings[key])}: {reason}; to mend: correct it, {mend}"
        )
    return "\n".join(lines.values())


def _shown(key: str, value: Any) -> str:
    """Return a refused value's text without anything that may be a password."""
    if isinstance(value, str):
        # Where the password is in a server's text that was refused, nobody knows.
        return (
            scheme_only(value) if key in _SECRET or "@" in value or "://" in value else repr(value)
        )
    if isinstance(value, Mapping):
        shown = {
            k: _open(v) if k in ("host", "port", "transport") else "…" for k, v in value.items()
        }
        return repr(shown)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_shown(key, entry) for entry in value)}]"
    secret = key in _SECRET and value is not None and not isinstance(value, int | float)
    return f"a {type(value).__name__}" if secret else repr(value)


def _open(value: Any) -> Any:
    """Return what stands for a host, port or transport, unless somebody put a whole URL there."""
    if isinstance(value, int) or (isinstance(value, str) and not set("@:/?%") & set(value)):
        return value
    return "…"
