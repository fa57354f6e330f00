from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import AsyncIterator

import pytest

from warpgate import IP4, IP6
from warpgate.cli import main
from warpgate.nat.behaviour import Allocation, Filtering, Mapping, PortAllocation
from warpgate.nat.report import NetReport, PathReport, ServerReport
from warpgate.net.datagram import DatagramSocket
from warpgate.net.nic import Interface, InterfaceAddress
from warpgate.stun import attributes as att
from warpgate.stun import survey as survey_module
from warpgate.stun.hops import first_hops, offender_of
from warpgate.stun.message import BINDING, MessageClass, decode, encode, looks_like_stun
from warpgate.stun.probe import Place, probe_path
from warpgate.stun.survey import survey, usable_places

Address = tuple[str, int]
HERE = Place("lo", IP4, "127.0.0.1")


class Rfc5780:
    """A STUN server with two addresses and two ports; it can be told to lie or be silent."""

    def __init__(self) -> None:
        self.links: dict[tuple[int, int], DatagramSocket] = {}
        self.changes = True
        self.step: int | None = None  # a NAT that counts, seen from here
        self.drop_changed = False
        self._count = 0
        self._made: dict[tuple[Address, tuple[int, int]], int] = {}

    async def start(self) -> Rfc5780:
        for host in (0, 1):
            for port in (0, 1):
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                wanted = self.links[0, port].local[1] if host else 0
                sock.bind((f"127.0.0.{2 + host}", wanted))
                self.links[host, port] = await DatagramSocket.open(sock)
        for place, link in self.links.items():
            link.default = lambda data, source, place=place: self.received(place, data, source)
        return self

    def received(self, place: tuple[int, int], data: bytes, source: Address) -> None:
        if not looks_like_stun(data):
            return
        request = decode(data)
        change = request.get(att.CHANGE_REQUEST) or 0
        if change and (self.drop_changed or not self.changes):
            return
        other = self.links[1 - place[0], 1 - place[1]].local
        mapped = source
        if self.step is not None:
            self._made.setdefault((source, place), len(self._made))
            mapped = ("198.51.100.1", 20000 + self.step * self._made[source, place])
        sender = (
            place[0] ^ bool(change & att.CHANGE_IP),
            place[1] ^ bool(change & att.CHANGE_PORT),
        )
        values = [(att.XOR_MAPPED_ADDRESS, mapped), (att.OTHER_ADDRESS, other)]
        answer = encode(BINDING, MessageClass.SUCCESS, request.transaction_id, values)
        self.links[sender].send_to(answer, source)

    @property
    def addresses(self) -> list[Address]:
        return [self.links[0, 0].local, self.links[1, 0].local]

    @property
    def names(self) -> list[str]:
        return [f"{ip}:{port}" for ip, port in self.addresses]


@pytest.fixture
async def server() -> AsyncIterator[Rfc5780]:
    made = await Rfc5780().start()
    yield made
    for link in made.links.values():
        link.close()


async def test_nothing_in_the_way(server: Rfc5780) -> None:
    found = (await probe_path(HERE, server.addresses)).report
    assert found.udp is True
    assert found.mapping is Mapping.NONE
    assert found.filtering is Filtering.ENDPOINT_INDEPENDENT
    assert found.firewall is False
    assert found.allocation is not None
    assert found.allocation.kind is Allocation.NONE
    assert found.hairpin is None
    assert found.several_nats is False
    assert found.external == ("127.0.0.1",)
    assert found.nat_type is not None
    assert found.nat_type.name == "OPEN"


async def test_a_nat_that_counts(server: Rfc5780) -> None:
    server.step = 2
    # One address, so that requests are read in the order in which they were sent.
    result = await probe_path(HERE, server.addresses[:1])
    found = result.report
    assert found.mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT
    assert found.allocation is not None
    assert (found.allocation.kind, found.allocation.step) == (Allocation.SEQUENTIAL, 2)
    assert set(found.taken) == {t.mapped[1] for t in result.transactions if t.mapped}
    assert len(found.taken) >= 8


async def test_missing_answers_mean_filtering(server: Rfc5780) -> None:
    server.drop_changed = True
    found = (await probe_path(HERE, server.addresses)).report
    assert found.filtering is Filtering.ADDRESS_AND_PORT_DEPENDENT
    assert found.firewall is True


async def test_missing_answers_mean_nothing_when_the_second_address_is_dead(
    server: Rfc5780,
) -> None:
    server.drop_changed = True
    for place in ((0, 1), (1, 0), (1, 1)):
        server.links[place].default = None
    found = (await probe_path(HERE, server.addresses[:1])).report
    assert found.udp is True
    assert found.filtering is None
    assert found.firewall is None


async def test_one_dead_server_says_nothing_about_udp() -> None:
    result = await probe_path(HERE, [("127.0.0.9", 9)], deadline_s=0.1)
    assert result.report.udp is None
    assert result.report.tcp is None
    several = await probe_path(HERE, [("127.0.0.9", 9), ("127.0.0.8", 9)], deadline_s=0.1)
    assert several.report.udp is False
    assert several.report.nat_type is not None
    assert several.report.nat_type.name == "BLOCKED"


async def test_the_survey_names_servers_and_what_is_missing(server: Rfc5780) -> None:
    found = await survey(["127.0.0.9:9", *server.names], places=[HERE])
    assert [each.answered for each in found.servers] == [False, True, True]
    assert found.servers[1].filtering_test is True
    assert found.servers[0].error
    assert found.missing == ()
    assert found.path(IP4) is found.paths[0]
    assert found.path(IP6) is None


async def test_without_servers_it_says_what_is_missing() -> None:
    found = await survey([], places=[HERE])
    assert found.paths[0].udp is None
    assert found.paths[0].nat_type is None
    assert "WARPGATE_STUN" in found.missing[0]
    assert "nothing tested" in found.text()


async def test_a_name_that_takes_for_ever_is_left_out(
    server: Rfc5780, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def slow(host: str, port: int, *_: object) -> list[object]:
        if host == "slow.example":
            release.wait(30)
        if host == "quick.example":
            return [(socket.AF_INET, 2, 17, "", (server.addresses[0][0], port))]
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(survey_module.socket, "getaddrinfo", slow)
    port = server.addresses[0][1]
    names = ["slow.example", f"quick.example:{port}", "none.example"]
    found = await survey(names, places=[HERE])
    release.set()
    assert [each.answered for each in found.servers] == [None, True, None]
    assert found.seconds < 20
    assert sum("was not found in time" in each for each in found.missing) == 2


async def test_nat64_is_found_through_the_resolver(
    server: Rfc5780, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def resolve(host: str, *_: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET6, 2, 17, "", ("64:ff9b::c000:aa", 0, 0, 0))]

    monkeypatch.setattr(survey_module.socket, "getaddrinfo", resolve)
    found = await survey([], places=[Place("lo", IP6, "::1")])
    assert asked == ["ipv4only.arpa"]
    assert (found.nat64, found.nat64_prefix) == (True, "64:ff9b::/96")
    assert Place("lo", IP6, "::1", "64:ff9b::/96").reach(("192.0.2.1", 5)) == (
        "64:ff9b::c000:201",
        5,
    )


def test_places_are_where_something_leads_out() -> None:
    def nic(name: str, *ips: str, gateways: dict[int, str | None]) -> Interface:
        addresses = tuple(
            InterfaceAddress(
                IP6 if ":" in ip else IP4, ip, 64, "link" if ip.startswith("fe80") else "global"
            )
            for ip in ips
        )
        return Interface(name, 2, addresses, gateways=gateways)

    out = nic(
        "eth0", "198.51.100.1", "2001:db8::1", "fe80::1%eth0", gateways={IP4: None, IP6: None}
    )
    lan = nic("eth1", "198.51.100.2", gateways={})
    assert usable_places([out, lan]) == [
        Place("eth0", IP4, "198.51.100.1"),
        Place("eth0", IP6, "2001:db8::1"),
    ]
    assert usable_places([lan]) == [Place("eth1", IP4, "198.51.100.2")]
    assert usable_places([nic("eth2", "fe80::2%eth2", gateways={})]) == []


REPORT = NetReport(
    paths=(
        PathReport(
            "eth0", IP4, "192.168.1.2", udp=True, tcp=False, external=("198.51.100.1",),
            mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
            filtering=Filtering.ADDRESS_DEPENDENT,
            allocation=PortAllocation(Allocation.BLOCK, low=512, high=1023, samples=20),
            hairpin=False, rtt_s=0.05,
        ),
        PathReport("eth0", IP6, "2001:db8::1"),
    ),
    servers=(ServerReport("a:1", True, 0.05, True, "x"), ServerReport("b:1", False, error="no answer")),
    missing=("something",),
    seconds=0.6,
)  # fmt: skip


def test_the_report_as_plain_values() -> None:
    plain = json.loads(json.dumps(REPORT.as_dict()))
    first, second = plain["paths"]
    assert first["mapping"] == "address-and-port-dependent"
    assert first["allocation"] == {
        "kind": "block",
        "step": 0,
        "low": 512,
        "high": 1023,
        "samples": 20,
    }
    assert (first["nat_type"], first["delta_type"]) == ("symmetric", "random")
    assert second["udp"] is None
    assert second["nat_type"] is None


def test_the_report_for_people() -> None:
    text = REPORT.text()
    for part in (
        "eth0, IPv4 192.168.1.2", "address-and-port-dependent", "block 512-1023", "TCP              blocked",
        "hairpin          no", "firewall         not tested", "50 ms, can test filtering, x",
        "STUN b:1: no answer", "missing: something", "took 0.60 s",
    ):  # fmt: skip
        assert part in text


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    async def fake(servers: list[str]) -> NetReport:
        asked.append(list(servers))
        return REPORT if servers else NetReport()

    monkeypatch.setattr(survey_module, "survey", fake)
    monkeypatch.setenv("WARPGATE_STUN", "c:3, d:4")
    assert main(["nat", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == REPORT.as_dict()
    assert main(["nat", "--stun", "a:1", "b:1"]) == 0
    assert capsys.readouterr().out == REPORT.text() + "\n"
    monkeypatch.setenv("WARPGATE_STUN", "")
    assert main(["nat"]) == 0
    monkeypatch.delenv("WARPGATE_STUN")
    assert main(["nat"]) == 0
    assert asked == [["c:3", "d:4"], ["a:1", "b:1"], [], []]


def test_the_command_fails_when_nobody_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fake(servers: list[str]) -> NetReport:
        return NetReport(servers=(ServerReport("a:1", False),))

    monkeypatch.setattr(survey_module, "survey", fake)
    assert main(["nat", "--stun", "a:1"]) == 1
    assert "a:1" in capsys.readouterr().out


def test_a_wrong_server_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nat", "--stun", "host:port"]) == 2
    assert "the port is no number from 1 to 65535" in capsys.readouterr().err


def test_who_sent_a_time_exceeded() -> None:
    head = bytes([113, 0, 0, 0, 2, 11, 0, 0]) + bytes(8)
    offender = bytes([2, 0, 0, 0, 192, 168, 1, 1]) + bytes(8)
    assert offender_of(head + offender) == "192.168.1.1"
    assert offender_of(head[:5] + b"\x03" + head[6:] + offender) is None  # unreachable
    assert offender_of(head) is None


async def test_a_server_next_door_has_no_routers_before_it(server: Rfc5780) -> None:
    if sys.platform == "linux":
        found = await first_hops(IP4, "127.0.0.1", server.addresses[0], b"x", seconds=0.01)
        assert found == (None, None, None)
    assert await first_hops(IP6, "::1", ("::1", 9), b"x") == ()


async def test_the_probe_leaves_nothing(server: Rfc5780) -> None:
    before = {task for task in asyncio.all_tasks() if not task.done()}
    await survey(server.names, places=[HERE])
    assert {task for task in asyncio.all_tasks() if not task.done()} == before
