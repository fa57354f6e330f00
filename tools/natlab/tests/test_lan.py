"""Real nodes on a LAN without internet, and where only one broker can be reached."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from warpgate_natlab import Lab
from warpgate_natlab.namespaces import ETC_NETNS
from warpgate_natlab.session import Peer

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

START_S: Final = 20.0
SOON_S: Final = 4.0
"""Far below what any server's silence costs; a node takes a hundredth of it."""
END_S: Final = 6.0
"""A resolver without an answer takes 10 s and more, and so would the process's end."""
BY_NAME: Final = {
    "brokers": ["mqtts://broker.example:443", "mqtt://broker2.example"],
    "stun_servers": ["stun.example:3478", "stun2.example"],
    "turn_servers": ["turn:u:p@turn.example", "turns:u:p@turn.example:443"],
    "ntp_servers": ["ntp.example"],
}
BY_ADDRESS: Final = {
    "brokers": ["mqtts://192.0.2.10:443", "mqtt://192.0.2.11"],
    "stun_servers": ["192.0.2.20:3478", "192.0.2.21"],
    "turn_servers": ["turn:u:p@192.0.2.20", "turns:u:p@192.0.2.20:443"],
    "ntp_servers": ["192.0.2.30"],
}
STRATEGIES: Final = ("direct_connect", "reverse_connect", "tcp_punch", "udp_punch")


@contextmanager
def nodes(lab: Lab, conf: dict[str, Any], warm: bool = False) -> Iterator[tuple[Peer, Peer]]:
    with Peer(lab, "a", conf, warm=warm) as a, Peer(lab, "b", conf, warm=warm) as b:
        for each in (a, b):
            assert warm or each.answer(START_S)["start_s"] < SOON_S
        yield a, b


def call(caller: Peer, called: Peer, **options: Any) -> dict[str, Any]:
    address = called.ask({"do": "address"})["address"]
    request = {"do": "connect", "address": address, "timeout": 30, "forget": True}
    found = caller.ask({**request, "options": options}, 40)
    assert found["ok"], found["error"]
    return found


def is_direct(a: Peer, b: Peer) -> None:
    """Check that each way works, and that the best one is taken."""
    found = call(a, b)
    assert (found["strategy"], found["path"]) == ("direct_connect", "direct")
    assert found["ping_s"] < SOON_S
    for name in STRATEGIES:  # all but the first need signals
        for one, other in ((a, b), (b, a)):
            assert call(one, other, plugins=[name])["ping_s"] < SOON_S


@pytest.mark.parametrize("conf", [BY_ADDRESS, BY_NAME], ids=["by-address", "by-name"])
@pytest.mark.parametrize("way_out", ["dead", "none"])
def test_a_lan_without_internet(conf: dict[str, Any], way_out: str) -> None:
    with Lab(pair="same-lan") as lab:
        for host in (lab.a, lab.b):  # a DNS server that never answers; as patient as by default
            folder = ETC_NETNS / host.name
            folder.mkdir(parents=True, exist_ok=True)
            server = "192.0.2.53" if way_out == "dead" else "192.168.1.200"
            (folder / "resolv.conf").write_text(f"nameserver {server}\n", "ascii")
            if way_out == "none":
                host.configure("route del default")
        lab.cut("a")
        with nodes(lab, conf) as (a, b):
            is_direct(a, b)
            for each in (a, b):
                started = time.monotonic()
                assert each.process.stdin is not None
                each.process.stdin.close()
                assert each.process.wait(START_S) == 0
                assert time.monotonic() - started < END_S


def test_the_internet_goes_away() -> None:
    with (
        Lab(pair="same-lan-no-hairpin", servers=["mqtt", "stun"]) as lab,
        nodes(lab, {"enable_upnp": False}, warm=True) as (a, b),
    ):
        a.answer(START_S), b.answer(START_S)
        is_direct(a, b)
        lab.cut("a")
        is_direct(a, b)


def test_one_broker_on_443_among_silent_ones() -> None:
    with Lab("https-only", "port-restricted", servers=["mqtt", "stun"]) as lab:
        silent = lab.servers.brokers()
        conf = {"enable_upnp": False, "brokers": [*reversed(silent), "mqtts://192.0.2.10:443"]}
        with nodes(lab, conf) as (a, b):
            for one, other in ((a, b), (b, a), (a, b)):
                found = call(one, other)
                assert found["path"] == "relay"
                assert found["ping_s"] < 3 * SOON_S
