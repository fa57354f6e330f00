"""Nothing a host sends ends the network: mangled packets through every kind of box."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest

from warpgate_natlab.engine import build
from warpgate_natlab.engine.frag import fragment
from warpgate_natlab.engine.packet import ACK, RST, SYN, Packet
from warpgate_natlab.engine.world import World


def ip(text: str) -> bytes:
    return ip_address(text).packed


def boxes() -> World:
    """a (IPv4 and IPv6) and b on either side of a firewall, a nat and a nat64."""
    return World(
        {
            "devices": ["a", "b"],
            "nodes": {
                "split": {
                    "type": "router", "addresses": ["10.0.0.1", "2001:db8::1"],
                    "routes": {
                        "host": ["10.0.0.0/24", "2001:db8::/64"], "four": ["0.0.0.0/0"],
                        "sixfour": ["64:ff9b::/96"], "six": ["::/0"],
                    },
                },
                "nat": {"type": "nat", "external": ["203.0.113.1"], "stray_syn": "rst",
                        "stray_udp": "icmp", "mapping": "address-dependent"},
                "n64": {"type": "nat64", "external": ["203.0.113.2"], "stray_syn": "icmp",
                        "address": "2001:db8::64", "filtering": "endpoint-independent"},
                "fire": {"type": "firewall", "addresses": ["2001:db8:f::1"],
                         "filtering": "address-dependent", "tcp_midstream": "rst"},
                "far": {
                    "type": "router", "addresses": ["198.51.100.254", "2001:db8:b::1"],
                    "routes": {
                        "b": ["198.51.100.0/24", "2001:db8:b::/64"], "nat": ["203.0.113.1/32"],
                        "n64": ["203.0.113.2/32"], "six": ["2001:db8::/64"],
                    },
                },
            },
            "links": {
                "la": {"a": "a", "b": "split:host"}, "lb": {"a": "b", "b": "far:b"},
                "i4": {"a": "split:four", "b": "nat:in"}, "i6": {"a": "split:six", "b": "fire:in"},
                "i64": {"a": "split:sixfour", "b": "n64:in"},
                "o4": {"a": "nat:out", "b": "far:nat", "both": {"mtu": 600}},
                "o6": {"a": "fire:out", "b": "far:six", "both": {"mtu": 1280}},
                "o64": {"a": "n64:out", "b": "far:n64", "both": {"mtu": 700}},
            },
        },
        check=False,
    )  # fmt: skip


HOME = {4: ip("10.0.0.2"), 6: ip("2001:db8::2")}
FAR = {4: ip("198.51.100.7"), 6: ip("2001:db8:b::7"), 64: ip("64:ff9b::198.51.100.7")}


def some_packet(rng: random.Random, seen: list[Packet], *, home: bool) -> Packet:
    """A packet from a's or b's side; often about one that has arrived there."""
    if seen and rng.random() < 0.6:
        about = rng.choice(seen)
        src, dst, sport, dport = about.dst, about.src, about.dport, about.sport
        if rng.random() < 0.3:
            kind, code = rng.choice([(3, 3), (3, 4), (11, 0), (1, 4), (2, 0), (4, 1), (12, 0)])
            return build.icmp_error(src, about, kind, code, rng.getrandbits(16))
    elif home:
        way = rng.choice([4, 6, 64])
        src, dst = HOME[4 if way == 4 else 6], FAR[way]
        sport, dport = rng.randint(1, 9), rng.randint(1, 9)
    else:
        src, dst = rng.choice(
            [(FAR[4], ip("203.0.113.1")), (FAR[4], ip("203.0.113.2")), (FAR[6], HOME[6])]
        )
        sport, dport = rng.randint(1, 9), rng.randint(1, 9)
    data = rng.randbytes(rng.choice([0, 3, 40, 1400]))
    kind = rng.randrange(3)
    if kind == 0:
        return build.udp(src, sport, dst, dport, data, df=rng.random() < 0.5)
    if kind == 1:
        flags = rng.choice([SYN, ACK, RST, SYN | ACK, 1 | ACK])
        return build.tcp(src, sport, dst, dport, flags, data=data, ttl=rng.randint(1, 9))
    return build.echo(src, dst, sport, 1, data, reply=rng.random() < 0.3)


@pytest.mark.parametrize("seed", range(6))
def test_mangled_packets_break_nothing(seed: int) -> None:
    rng = random.Random(seed)
    w = boxes()
    through = 0
    for _ in range(1500):
        side = rng.choice("ab")
        packet = some_packet(rng, w.take(side), home=side == "a")
        pieces = [packet]
        if rng.random() < 0.1 and not packet.v6:
            pieces = fragment(packet, rng.randint(68, 600), rng.getrandbits(16))
        for piece in pieces:
            raw = bytearray(piece.buf)
            for _ in range(rng.choice([0, 0, 0, 1, 2, 5])):
                raw[rng.randrange(min(len(raw), 90))] = rng.getrandbits(8)
            if rng.random() < 0.05:
                del raw[rng.randrange(len(raw)) :]
            w.graph.inject(side, raw, w.now)
        w.pass_time(rng.choice([0, 0, 0.01, 3]))
        through += len(w.arrived["b" if side == "a" else "a"])
    assert through > 200
    w.graph.stats(w.now)
