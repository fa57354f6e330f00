"""Home routers made of the kernel's own NAT: nftables in a namespace, and its connection tracking."""

from __future__ import annotations

import socket
import struct
import subprocess
from typing import Final

from .namespaces import LabError, Namespace, command, inside

NETLINK_NETFILTER: Final = 12  # linux/netlink.h; the socket module has no name for it
LAN: Final = "lan0"
WAN: Final = "wan0"
BLOCK: Final = (40960, 41471)
"""The 512 ports of ``linux-block``."""

_MASQUERADE: Final = {
    "masquerade": "masquerade",
    "upnp": "masquerade",
    "random": "masquerade fully-random",
    "block": f"masquerade to :{BLOCK[0]}-{BLOCK[1]} fully-random",
}


def rules(kind: str) -> str:
    """Return a router's nftables rule set.

    What nobody asked for is dropped in ``input`` and ``forward``: left to itself, the kernel would
    answer a stray SYN with RST.

    Args:
        kind: ``masquerade``, ``random``, ``block`` or ``upnp`` (with the chains of miniupnpd).

    """
    masquerade = f'oifname "{WAN}" {_MASQUERADE[kind]}'
    if kind == "block":  # a port range needs a protocol that has ports
        masquerade = f'oifname "{WAN}" meta l4proto {{ tcp, udp }} {_MASQUERADE[kind]}'
    upnp = kind == "upnp"
    # miniupnpd keeps all its chains in one table; its NAT table here is the filter's.
    chains = (
        """
    chain miniupnpd { }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
    chain prerouting {
        type nat hook prerouting priority -100; policy accept;
        jump prerouting_miniupnpd
    }"""
        if upnp
        else ""
    )
    return f"""
table inet filter {{{chains}
    chain input {{
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        iifname {{ "lo", "{LAN}" }} accept
        icmp type echo-request accept
    }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname "{LAN}" oifname "{WAN}" ct state new accept
        {"jump miniupnpd" if upnp else ""}
    }}
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        {"jump postrouting_miniupnpd" if upnp else ""}
        {masquerade}
    }}
}}
"""


def configure(router: Namespace, kind: str) -> None:
    """Turn a namespace with ``lan0`` and ``wan0`` into a NAT.

    Raises:
        LabError: nftables is missing or refused the rules.

    """
    nft = command("nft")
    if nft is None:
        raise LabError("the profiles linux* need the command nft (Debian package nftables)")
    router.sysctl(ipv4__ip_forward=1)
    with inside(router.name):
        done = subprocess.run(
            [nft, "-f", "-"], input=rules(kind), text=True, capture_output=True, check=False
        )
    if done.returncode:
        raise LabError(f"nft refused the rules of {router.name}: {done.stderr}")


def ruleset(router: Namespace) -> str:
    """Return the rules as the kernel has them."""
    return router.run([command("nft") or "nft", "list", "ruleset"]).stdout


def set_timers(router: Namespace, seconds: int) -> None:
    """Set how long the kernel keeps silent UDP and established TCP connections, in whole seconds."""
    router.sysctl(
        netfilter__nf_conntrack_udp_timeout=seconds,
        netfilter__nf_conntrack_udp_timeout_stream=seconds,
        netfilter__nf_conntrack_tcp_timeout_established=seconds,
        # Data that nobody acknowledges has a time of its own.
        netfilter__nf_conntrack_tcp_timeout_unacknowledged=seconds,
        netfilter__nf_conntrack_tcp_timeout_max_retrans=seconds,
    )


def forget(router: Namespace) -> None:
    """Forget every mapping, as a reboot does.

    Raises:
        LabError: the kernel refused.

    """
    # One netlink message to the kernel's connection tracking: delete (2 of subsystem 1), without
    # naming a connection; header, then family, version, resource (nfnetlink.h).
    request, acknowledge = 1, 4
    message = struct.pack("=IHHII", 20, (1 << 8) | 2, request | acknowledge, 1, 0) + bytes(4)
    with inside(router.name):
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    with sock:
        sock.settimeout(2)
        sock.sendto(message, (0, 0))
        answer = sock.recv(4096)
    (error,) = struct.unpack_from("=i", answer, 16)
    if error:
        raise LabError(f"the kernel did not forget its connections: error {-error}")
