"""``warpgate broker``: a broker for the nodes of a LAN."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from warpgate.cli import Subparsers

DEFAULT_PORT: Final = 1883


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add the parser of ``warpgate broker``."""
    parser = subparsers.add_parser(
        "broker",
        help="run an MQTT broker for the nodes of a LAN",
        description=(
            "Run an MQTT broker until interrupted, and print the URLs to give to nodes by "
            'WARPGATE_BROKERS or conf["brokers"]. Anyone who reaches it can use it: it is meant '
            "for a LAN. Needs pip install warpgate-core[broker]."
        ),
    )
    parser.add_argument(
        "--host",
        default="0.0.0.0",
        help="address to listen on (default: all of IPv4; 127.0.0.1 for this machine only)",
    )
    parser.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, help="TCP port, 0 for a free one (1883)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    asyncio.run(_serve(args.host, args.port))
    return 0


async def _serve(host: str, port: int) -> None:
    from warpgate.signalling.broker import EmbeddedBroker

    async with EmbeddedBroker(host, port) as broker:
        for url in _urls(broker.host, broker.port):
            print(url, flush=True)
        await asyncio.Event().wait()


def _urls(host: str, port: int) -> list[str]:
    """Return the URLs by which nodes reach a broker that listens on ``host``."""
    from warpgate.net.nic import own_ips
    from warpgate.protocol.ip import is_link_local, is_loopback
    from warpgate.server_urls import join_host_port

    if host not in ("0.0.0.0", "::"):
        return [f"mqtt://{join_host_port(host, port)}"]
    family6 = host == "::"
    ips = sorted(ip for ip in own_ips() if (":" in ip) == family6 and not is_link_local(ip))
    ips.sort(key=is_loopback)
    return [f"mqtt://{join_host_port(ip, port)}" for ip in ips]


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError
    return port
