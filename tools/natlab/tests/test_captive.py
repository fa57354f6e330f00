"""Real nodes in a captive network, before and after the login."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from warpgate_natlab import Lab
from warpgate_natlab.portal_server import ADDRESS, reply
from warpgate_natlab.session import Peer

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

START_S = 20.0
SOON_S = 10.0
"""Far below a call's time (60 s) and a survey's back-off (300 s); a node takes a tenth of it."""


@contextmanager
def nodes(lab: Lab, **conf: Any) -> Iterator[tuple[Peer, Peer]]:
    settings = {"enable_upnp": False, **conf}
    with (
        Peer(lab, "a", settings, warm=False) as a,
        Peer(lab, "b", settings) as b,
    ):
        a.answer(START_S), b.answer(START_S)
        yield a, b


def call(caller: Peer, called: Peer, **options: Any) -> dict[str, Any]:
    address = called.ask({"do": "address"})["address"]
    request = {"do": "connect", "address": address, "timeout": 30, "forget": True}
    return caller.ask({**request, "options": options}, 40)


def brokers(lab: Lab, tls: bool) -> dict[str, Any]:
    return {"brokers": lab.servers.brokers(https=tls), "stun_servers": lab.servers.stun()}


def test_a_portal_on_443_alone_is_enough() -> None:
    with Lab("https-only", "port-restricted", servers=["mqtt", "stun"]) as lab:
        lab.captive("a")
        with nodes(lab) as (a, b):
            found = call(a, b)
            assert not found["ok"]
            assert "open a web browser and log in" in found["error"].partition("\n")[0]
            assert found["report"]["seconds"] < SOON_S  # a dial without an answer takes that long
            lab.login("a")
            found = call(a, b)
            assert (found["ok"], found["path"]) == (True, "relay")


@pytest.mark.parametrize("tls", [False, True], ids=["mqtt", "mqtts"])
def test_a_call_before_the_login_fails_soon_and_says_why(tls: bool) -> None:
    with Lab("port-restricted", "port-restricted", servers=["mqtt", "stun"]) as lab:
        lab.captive("a")
        with nodes(lab, **brokers(lab, tls)) as (a, b):
            found = call(a, b)
            assert not found["ok"]
            assert found["report"]["seconds"] < SOON_S
            head = found["error"].partition("\n")[0]
            assert "open a web browser and log in" in head
            assert all(url in head for url in lab.servers.brokers(https=tls))
            assert ("web page" in head) is not tls
            assert ("certificate" in head) is tls
            dials = [t for t in found["report"]["attempts"] if t["strategy"] == "direct_connect"]
            assert dials
            assert all("a web page came" in each["cause"] for each in dials)
            assert all(each["seconds"] < SOON_S / 2 for each in dials)


def test_a_dial_that_a_portal_takes_meets_nobody() -> None:
    with Lab("port-restricted", "open") as lab:
        lab.captive("a")
        with nodes(lab) as (a, b):
            found = call(a, b, plugins=["direct_connect"])
            assert not found["ok"]
            assert "which answered no signal and no dial" in found["error"]
            lab.login("a")
            assert call(a, b, plugins=["direct_connect"])["ok"]


@pytest.mark.parametrize("profile", ["port-restricted", "udp-blocked"])
def test_after_the_login_the_node_comes_back_by_itself(profile: str) -> None:
    with Lab(profile, "port-restricted", servers=["mqtt", "stun"]) as lab:
        lab.captive("a")
        with nodes(lab) as (a, b):
            assert not call(a, b)["ok"]
            lab.login("a")
            # Nobody calls from here: b's signal finds it as soon as a broker is connected again.
            deadline = time.monotonic() + 2 * SOON_S
            while not (found := call(b, a))["ok"]:
                assert time.monotonic() < deadline, f"{found['error']}\n{a.log()}"
            second = call(a, b)
            assert second["ok"]
            assert second["path"] == "direct"


def test_the_first_call_after_the_login_is_direct() -> None:
    with Lab("port-restricted", "port-restricted", servers=["mqtt", "stun"]) as lab:
        lab.captive("a")
        with nodes(lab) as (a, b):
            for _ in range(3):  # servers have become bad, and UDP silent
                assert not call(a, b)["ok"]
            lab.login("a")
            found = call(a, b)
            assert (found["ok"], found["path"]) == (True, "direct")
            assert found["report"]["seconds"] < SOON_S


def test_a_relay_is_found_after_the_login() -> None:
    with Lab("symmetric-random", "symmetric-random", servers=["mqtt", "stun"]) as lab:
        lab.captive("a")
        with nodes(lab) as (a, b):
            found = call(a, b, plugins=["turn"])
            assert not found["ok"]
            lab.login("a")
            found = call(a, b, plugins=["turn"])
            assert (found["ok"], found["path"]) == (True, "relay")


def test_the_portal_is_every_name() -> None:
    query = b"\x12\x34\x01\x00\0\1\0\0\0\0\0\0\x06broker\x03lab\0\0\x01\0\x01"
    answer = reply(query)
    assert answer is not None
    assert answer[:2] == query[:2]
    assert answer[-4:] == bytes(map(int, ADDRESS.split(".")))
    for length in range(len(query)):
        assert reply(query[:length]) is None
    with Lab("port-restricted", "open") as lab:
        lab.captive("a")
        with lab.a.socket() as sock:
            sock.settimeout(5)
            sock.sendto(query, ("192.0.2.53", 53))
            assert sock.recv(512) == answer


def test_impairments_outlive_portal_and_login() -> None:
    with Lab("port-restricted", "open", delay_ms=31) as lab:
        lab.set_link("a", "out", loss=0.5)
        link = lab.nic("a").access
        before = lab.engine.ask("describe")["links"][link]
        lab.captive("a")
        lab.captive("a")
        behind = lab.engine.ask("describe")["links"][link]
        assert {**behind, "b": before["b"]} == before
        assert behind["b"] != before["b"]
        lab.login("a")
        lab.login("a")
        assert lab.engine.ask("describe")["links"][link] == before
