from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from warpgate_natlab import Lab, LabError
from warpgate_natlab.probe import Prober
from warpgate_natlab.profiles import profile
from warpgate_natlab.pytest_plugin import Factory
from warpgate_natlab.sockets import receive
from warpgate_natlab.topology import PROBES, nat64

pytestmark = pytest.mark.netns

SERVER = (PROBES[0], 7000)


@pytest.fixture
def pair(natlab: Factory) -> Iterator[tuple[Lab, socket.socket, socket.socket]]:
    lab = natlab("port-restricted", "open")
    with lab.a.socket(ip=lab.a.ip) as host, lab.net.socket(ip=SERVER[0], port=SERVER[1]) as server:
        yield lab, host, server


def outside(host: socket.socket, server: socket.socket) -> tuple[str, int] | None:
    """Send a packet out and return the source that the server sees."""
    host.sendto(b"hello", server.getsockname()[:2])
    came = receive([server], 0.5, 1)
    return came[0][2] if came else None


def pattern(lab: Lab) -> tuple[list[int], list[int]]:
    """Return the outside ports of some sockets, and which packets get through."""
    with Prober(lab) as prober:
        ports = []
        for number in range(6):
            with lab.a.socket(ip=lab.a.ip, port=20000 + 7 * number) as sock:
                ports.append(prober.mapped(sock, [0])[0][1])
        lab.set_link("a", loss=0.3, burst_p=0.05, burst_r=0.3)
        with lab.a.socket(ip=lab.a.ip, port=30000) as sock:
            for number in range(200):
                sock.sendto(b"%d" % number, prober.targets[0])
            came = sorted(int(data) for _, data, _ in receive(prober.servers[:1], 0.4, 200))
    return ports, came


def test_the_same_seed_gives_the_same_ports_and_losses(natlab: Factory) -> None:
    first, second, other = (
        pattern(natlab("symmetric-random", "open", seed=seed)) for seed in (7, 7, 8)
    )
    assert first == second
    assert first[0] != other[0]
    assert first[1] != other[1]
    assert 60 < len(first[1]) < 190


def test_a_rebooted_nat_has_forgotten(pair: tuple[Lab, socket.socket, socket.socket]) -> None:
    lab, host, server = pair
    before = outside(host, server)
    assert before is not None
    assert len(lab.mappings("a")) == 1
    server.sendto(b"in", before)
    assert receive([host], 0.5, 1)
    assert lab.reboot_nat("a") == 1
    assert lab.mappings("a") == []
    server.sendto(b"in", before)
    assert not receive([host], 0.2, 1)


@pytest.mark.parametrize("name", ["port-restricted", "cgnat", "linux", "v6-only-nat64"])
def test_a_changed_address_is_what_servers_see(natlab: Factory, name: str) -> None:
    lab = natlab(name, "open")
    with lab.a.socket(ip=lab.a.ip) as host, lab.net.socket(ip=SERVER[0], port=SERVER[1]) as server:
        target = (nat64(SERVER[0]), SERVER[1]) if name == "v6-only-nat64" else SERVER
        host.sendto(b"before", target)
        ((_, _, old),) = receive([server], 0.5, 1)
        assert old[0] == "198.51.100.10"
        assert lab.change_address("a") == "198.51.100.11"
        server.sendto(b"to the old one", old)
        assert not receive([host], 0.2, 1)
        host.sendto(b"after", target)
        ((_, _, new),) = receive([server], 0.5, 1)
        assert new[0] == "198.51.100.11"
        server.sendto(b"back", new)
        assert receive([host], 0.5, 1)


def test_a_kernel_nat_forgets_as_well(natlab: Factory) -> None:
    lab = natlab("linux", "open")
    with lab.a.socket(ip=lab.a.ip) as host, lab.net.socket(ip=SERVER[0], port=SERVER[1]) as server:
        before = outside(host, server)
        assert before is not None
        server.sendto(b"in", before)
        assert receive([host], 0.5, 1)
        lab.reboot_nat("a")
        server.sendto(b"in", before)
        assert not receive([host], 0.2, 1)
    with pytest.raises(ValueError, match="a kernel NAT reboots at once"):
        lab.reboot_nat("a", down_s=1)


def test_links_can_be_cut_and_mended(pair: tuple[Lab, socket.socket, socket.socket]) -> None:
    lab, host, server = pair
    source = outside(host, server)
    assert source is not None
    lab.cut("a", "in")
    assert outside(host, server) == source
    server.sendto(b"in", source)
    assert not receive([host], 0.2, 1)
    lab.cut("a")
    assert outside(host, server) is None
    lab.restore("a")
    assert outside(host, server) == source
    server.sendto(b"in", source)
    assert receive([host], 0.5, 1)


def test_impairments_act_when_they_are_switched_on(
    pair: tuple[Lab, socket.socket, socket.socket],
) -> None:
    lab, host, server = pair
    lab.set_link("a", "out", delay_ms=120)
    started = time.monotonic()
    assert outside(host, server)
    assert time.monotonic() - started >= 0.125  # 120 ms and the servers' 5
    lab.set_link("a", "out", delay_ms=0, duplicate=1.0)
    host.sendto(b"twice", SERVER)
    assert len(receive([server], 0.3, 2)) == 2
    lab.set_link("a", "out", duplicate=0.0, mtu=600, mtu_icmp=True)
    host.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: always don't fragment
    host.sendto(bytes(1000), SERVER)
    assert not receive([server], 0.2, 1)
    with pytest.raises(OSError, match="Message too long"):
        host.sendto(bytes(1000), SERVER)
    with pytest.raises(LabError, match="refused set_link"):
        lab.set_link("a", colour=1)
    with pytest.raises(ValueError, match="no interface 'c'"):
        lab.set_link("c", loss=1)


def test_counters_tell_what_went_where(pair: tuple[Lab, socket.socket, socket.socket]) -> None:
    lab, host, server = pair
    for _ in range(5):
        assert outside(host, server)
    hosts = lab.stats("nat_a")["hosts"]["192.168.1.2"]
    assert (hosts["mappings"], hosts["flows"], hosts["remotes"]) == (1, 1, 1)
    assert lab.stats("nat_a")["dst"][SERVER[0]][0] == 5
    assert lab.stats("access_a")["ab"]["delivered"] == 5


def test_things_run_on_a_host(natlab: Factory) -> None:
    lab = natlab("fullcone", "open")
    assert "192.168.1.2/24" in lab.a.run(["ip", "addr", "show", "eth0"]).stdout
    assert lab.a.python("import os; print(os.stat('/proc/self/ns/net').st_ino)").stdout.strip() != (
        lab.b.python("import os; print(os.stat('/proc/self/ns/net').st_ino)").stdout.strip()
    )
    with pytest.raises(LabError, match="no-such"):
        lab.a.run(["ls", "/no-such"])
    with pytest.raises(ZeroDivisionError):
        lab.a.call(lambda: 1 / 0)

    async def listen() -> str:
        server = await asyncio.start_server(lambda r, w: w.close(), lab.b.ip, 7100)
        async with server:
            return str(await asyncio.to_thread(lab.a.call, fetch))

    def fetch() -> str:
        with socket.create_connection((lab.b.ip, 7100), timeout=2) as sock:
            return str(sock.getsockname()[0])

    assert lab.b.call(lambda: asyncio.run(listen())) == "192.168.1.2"


def test_a_host_with_ipv6_only_asks_dns64(natlab: Factory) -> None:
    lab = natlab("v6-only-nat64", "open")
    found = lab.a.run(["getent", "ahostsv6", "ipv4only.arpa"]).stdout
    assert "64:ff9b::c000:aa" in found
    assert "64:ff9b::c000:20a" in lab.a.run(["getent", "ahostsv6", "broker1.v4.lab"]).stdout


def test_nat64_by_another_prefix(natlab: Factory) -> None:
    behind = replace(profile("v6-only-nat64"), nat64_prefix="2001:db8:64::/96")
    lab = natlab(behind, "open")
    assert "2001:db8:64::c000:aa" in lab.a.run(["getent", "ahostsv6", "ipv4only.arpa"]).stdout
    with lab.net.socket(ip=PROBES[0], port=7000) as server, lab.a.socket(ip=lab.a.ip) as sock:
        sock.sendto(b"through", (nat64(PROBES[0], behind.nat64_prefix), 7000))
        ((_, data, source),) = receive([server], 2, 1)
    assert (data, source[0]) == (b"through", lab.a.nics[0].public[64])


def test_one_dns64_server_has_one_prefix() -> None:
    behind = replace(profile("v6-only-nat64"), nat64_prefix="2001:db8:64::/96")
    with pytest.raises(ValueError, match="one DNS64 server"):
        Lab(behind, "v6-only-nat64")


@pytest.mark.parametrize("fixture", ["same_lan", "same_lan_no_hairpin", "two_nics"])
def test_each_named_pair_has_a_fixture(fixture: str, request: pytest.FixtureRequest) -> None:
    lab = request.getfixturevalue(fixture)
    assert lab.pair.name == fixture.replace("_", "-")


@pytest.mark.parametrize("nat_pair", ["linux x cgnat"], indirect=True)
def test_any_pair_can_be_a_parameter(nat_pair: Lab) -> None:
    assert [nic.profile.name for nic in (nat_pair.a.nics[0], nat_pair.b.nics[0])] == [
        "linux",
        "cgnat",
    ]


@pytest.mark.slow
def test_one_pair_is_up_and_down_within_two_seconds() -> None:
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        with Lab("symmetric-random", "port-restricted"):
            pass
        seconds.append(time.monotonic() - started)
    assert statistics.median(seconds) <= 2


@pytest.mark.slow
def test_five_thousand_packets_a_second_are_forwarded_with_delay(
    pair: tuple[Lab, socket.socket, socket.socket],
) -> None:
    _, host, server = pair
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    came, sent, batch = 0, 0, 55  # 5,500 a second, in batches every 10 ms
    started = time.monotonic()
    while sent < 16500:
        for _ in range(batch):
            host.sendto(bytes(200), SERVER)
        sent += batch
        came += len(receive([server], max(started + sent / 5500 - time.monotonic(), 0), 10**6))
    spent = time.monotonic() - started
    came += len(receive([server], 0.5, sent - came))
    assert sent / spent >= 5000
    assert came >= 0.99 * sent
