"""The forms in which servers are configured: brokers, STUN, TURN and NTP servers.

======  =========================================================  ==================
kind    form                                                       default port
======  =========================================================  ==================
broker  ``mqtt[s]://[user:pass@]host[:port]``, ``ws[s]://…[/path]``  1883, 8883, 80, 443
STUN    ``host[:port]``                                            3478
TURN    ``turn[s]:user:pass@host[:port][?transport=udp|tcp|tls]``  3478, 5349 for TLS
NTP     ``host[:port]``                                            123
======  =========================================================  ==================

User names and passwords are percent-encoded where they hold ``:``, ``@``, ``/`` or ``%``; an IPv6
address stands in square brackets when a port follows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import unquote

STUN_PORT: Final = 3478
TURN_PORT: Final = 3478
TURN_TLS_PORT: Final = 5349
NTP_PORT: Final = 123
BROKER_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
TURN_TRANSPORTS: Final = ("udp", "tcp", "tls")

_SCHEMES: Final = (*BROKER_PORTS, "turn", "turns", "stun", "stuns", "tcp", "http", "https")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?")
_BROKER = re.compile(
    r"(?P<scheme>[a-z]+)://((?P<login>[^/]*)@)?(?P<place>[^/?#@]*)(?P<path>/[^?#@]*)?"
)
_TURN = re.compile(
    r"(?P<scheme>turns?):(?P<login>[^/]*)@(?P<place>[^/?#@]*)(\?transport=(?P<transport>[a-z]+))?"
)


@dataclass(frozen=True, slots=True)
class BrokerURL:
    """An MQTT broker; ``scheme`` is ``mqtt``, ``mqtts``, ``ws`` or ``wss``."""

    scheme: str
    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    path: str = ""


@dataclass(frozen=True, slots=True)
class TurnServer:
    """A TURN server; ``transport`` is how to reach it: ``udp``, ``tcp`` or ``tls``."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    transport: str = "udp"


def redact(text: str) -> str:
    """Return a server's text form without its user name and password.

    Of a text that has none of the forms only the scheme is left: where its password begins and
    ends can't be known.
    """
    match = _BROKER.fullmatch(text) or _TURN.fullmatch(text)
    try:
        _host_port(match["place"] if match else text, 1)
    except ValueError:
        return scheme_only(text)
    return text if match is None or match["login"] is None else _without_login(match)


def _without_login(match: re.Match[str]) -> str:
    begin, end = match.span("login")
    return f"{match.string[:begin]}…{match.string[end:]}"


def scheme_only(text: str) -> str:
    """Return the scheme of a server's text form, for texts that may hold a password anywhere."""
    scheme = re.match(r"\s*([A-Za-z]+):(//)?", text)
    return f"{scheme[0].strip()}…" if scheme and scheme[1].lower() in _SCHEMES else "…"


def parse_broker(text: str) -> BrokerURL:
    """Parse a broker's URL.

    Raises:
        ValueError: it does not have the form; of the URL itself the text has the scheme only.

    """
    match = _BROKER.fullmatch(text.strip())
    if match is None or match["scheme"] not in BROKER_PORTS:
        raise ValueError(
            f"{scheme_only(text)} is not of the form mqtt[s]://[user:pass@]host[:port], "
            "with ':', '@', '/' and '%' in user and pass percent-encoded"
        )
    try:
        host, port = _host_port(match["place"], BROKER_PORTS[match["scheme"]])
    except ValueError as error:
        raise ValueError(f"{scheme_only(text)}: {error}") from None
    user = password = None
    if match["login"] is not None:
        user, password = _login(match["login"])
    return BrokerURL(match["scheme"], host, port, user, password, match["path"] or "")


def parse_host_port(text: str, default_port: int) -> tuple[str, int]:
    """Parse ``host[:port]``.

    Args:
        text: a name, an IPv4 address or an IPv6 address (in brackets when a port follows).
        default_port: for a text without a port.

    Raises:
        ValueError: it does not have the form; the text quotes it unless it may be a URL.

    """
    try:
        return _host_port(text, default_port)
    except ValueError as error:
        shown = scheme_only(text) if set("@:/?%") & set(text) else repr(text)
        raise ValueError(f"{shown}: {error}") from None


def _host_port(text: str, default_port: int) -> tuple[str, int]:
    """Parse ``host[:port]``; the errors do not quote the text, which may be part of a secret."""
    text = text.strip()
    bracketed = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?", text)
    if bracketed:
        host, port_text = bracketed[1], bracketed[2]
    elif text.count(":") > 1:
        host, port_text = text, None
    else:
        host, colon, port_text = text.partition(":")
        port_text = port_text if colon else None
    if ":" in host or bracketed:
        try:
            ip_address(host)
        except ValueError:
            raise ValueError("no valid IPv6 address") from None
    elif not _HOST.fullmatch(host):
        raise ValueError("not of the form host[:port]")
    if port_text is None:
        return host, default_port
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or not 0 < int(port_text) < 65536:
        raise ValueError("the port is no number from 1 to 65535")
    return host, int(port_text)


def join_host_port(host: str, port: int) -> str:
    """Return ``host:port``, with brackets round an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_turn(server: str | Mapping[str, Any]) -> TurnServer:
    """Parse a TURN server.

    Args:
        server: its URL, or a mapping with ``host``, ``user``, ``password`` and optionally ``port``
            and ``transport``.

    Raises:
        ValueError: it does not have the form; of a URL the text has the scheme only.

    """
    if isinstance(server, str):
        match = _TURN.fullmatch(server.strip())
        transports = (None, *TURN_TRANSPORTS)
        if match is None or match["transport"] not in transports:
            raise ValueError(
                f"{scheme_only(server)} is not of the form "
                "turn[s]:user:pass@host[:port][?transport=udp|tcp|tls], "
                "with ':', '@', '/' and '%' in user and pass percent-encoded"
            )
        secure = match["scheme"] == "turns"
        transport = match["transport"] or ("tls" if secure else "udp")
        if secure and transport in ("udp", "tcp"):
            # RFC 7065: turns with transport=tcp is TLS over TCP; with udp it would be DTLS.
            if transport == "udp":
                raise ValueError(f"{scheme_only(server)}: TURN over DTLS is not supported")
            transport = "tls"
        try:
            host, port = _host_port(match["place"], _turn_port(transport))
        except ValueError as error:
            raise ValueError(f"{scheme_only(server)}: {error}") from None
        user, password = _login(match["login"])
        if password is None:
            raise ValueError(f"{scheme_only(server)} has no password")
        return TurnServer(host, port, user, password, transport)
    unknown = set(server) - {"host", "port", "user", "password", "transport"}
    if unknown:
        raise ValueError(f"a TURN server has no {', '.join(sorted(map(repr, unknown)))}")
    for key in ("host", "user", "password"):
        if not isinstance(server.get(key), str):
            raise ValueError(f"a TURN server's {key!r} must be text")
    transport = _transport(server.get("transport", "udp"))
    port = server.get("port", _turn_port(transport))
    if isinstance(port, bool) or not isinstance(port, int):
        raise ValueError("a TURN server's 'port' must be a number from 1 to 65535")
    try:
        host, port = _host_port(join_host_port(server["host"], port), port)
    except ValueError as error:
        raise ValueError(f"a TURN server's 'host' or 'port': {error}") from None
    return TurnServer(host, port, server["user"], server["password"], transport)


def _turn_port(transport: str) -> int:
    return TURN_TLS_PORT if transport == "tls" else TURN_PORT


def _transport(transport: object) -> str:
    if isinstance(transport, str) and transport in TURN_TRANSPORTS:
        return transport
    raise ValueError(f"transport {transport!r} is none of {', '.join(TURN_TRANSPORTS)}")


def _login(text: str) -> tuple[str, str | None]:
    user, colon, password = text.partition(":")
    return unquote(user), unquote(password) if colon else None
