"""Which ways lead from one host to the other: plain sockets only, so that it is physics."""

from __future__ import annotations

import contextlib
import socket
import struct

import pytest

from warpgate_natlab import Lab
from warpgate_natlab.pytest_plugin import Factory
from warpgate_natlab.sockets import dial, receive
from warpgate_natlab.topology import PROBES, server_v6

pytestmark = pytest.mark.netns

PORT = 24000
SERVER_PORT = 7003


def dials(lab: Lab, version: int) -> tuple[bool, bool]:
    """Tell whether a reaches b's listening port, and b a's, without anybody's preparation."""
    ends = []
    with contextlib.ExitStack() as stack:
        for host in (lab.a, lab.b):
            local = host.nics[0].local[version]
            listener = host.socket(socket.SOCK_STREAM, local, PORT, reuse=True)
            stack.enter_context(listener).listen()
            ends.append((host, local, (host.nics[0].public[version], PORT)))
        found = []
        for (host, local, _), (_, _, target) in (ends, ends[::-1]):
            caller = stack.enter_context(host.socket(socket.SOCK_STREAM, local))
            found.append(dial(caller, target, 0.5) == 0)
    return found[0], found[1]


def punches(lab: Lab, version: int, nic: int = 0) -> bool:
    """Tell whether UDP gets through when both send to where a server saw the other."""
    server_ip = server_v6(PROBES[0]) if version == 6 else PROBES[0]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(lab.net.socket(ip=server_ip, port=SERVER_PORT))
        socks = []
        for host, number in ((lab.a, nic), (lab.b, 0)):
            local = host.nics[number].local[version]
            socks.append(stack.enter_context(host.socket(ip=local, port=PORT)))
        seen = []
        for sock in socks:
            sock.sendto(b"who am I", (server_ip, SERVER_PORT))
            ((_, _, source),) = receive([server], 1, 1)
            seen.append(source)
        both = set()
        for _ in range(4):
            socks[0].sendto(b"a", seen[1])
            socks[1].sendto(b"b", seen[0])
            for sock, data, source in receive(socks, 0.2, 2):
                both.add(data)
                seen[1 - socks.index(sock)] = source  # it may come from elsewhere than expected
        return both == {b"a", b"b"}


@pytest.mark.parametrize(
    ("a", "b", "version", "direct", "punched"),
    [
        ("open", "port-restricted", 4, (False, True), True),
        ("open", "open", 4, (True, True), True),
        ("linux", "linux", 4, (False, False), True),
        ("linux-upnp", "linux-upnp", 4, (False, False), True),
        ("dual-stack", "v6-firewalled", 6, (False, False), True),
        ("dual-stack", "open-firewall", 4, (False, False), True),
        ("cgnat", "port-restricted", 4, (False, False), True),
        ("symmetric-random", "addr-restricted", 4, (False, False), True),
        ("symmetric-random", "port-restricted", 4, (False, False), False),
        ("symmetric-random", "fullcone", 4, (False, False), True),
    ],
)
def test_what_leads_from_host_to_host(
    natlab: Factory, a: str, b: str, version: int, direct: tuple[bool, bool], punched: bool
) -> None:
    lab = natlab(a, b)
    assert dials(lab, version) == direct
    assert punches(lab, version) is punched


def test_of_two_interfaces_only_the_second_can_be_punched_to(two_nics: Lab) -> None:
    assert dials(two_nics, 4) == (False, False)
    assert not punches(two_nics, 4, 0)
    assert punches(two_nics, 4, 1)


def test_a_mapped_port_of_a_home_router_is_reached_from_another_home(natlab: Factory) -> None:
    lab = natlab("linux-upnp", "linux-upnp")
    request = struct.pack("!BBHHHI", 0, 2, 0, PORT, PORT, 3600)  # NAT-PMP: map TCP
    with lab.b.socket(ip=lab.b.ip) as sock:
        sock.sendto(request, ("192.168.2.1", 5351))
        ((_, data, _),) = receive([sock], 2, 1)
    assert struct.unpack("!BBHIHHI", data)[2::3] == (0, PORT)
    assert dials(lab, 4) == (True, False)


@pytest.mark.parametrize("name", ["linux", "linux-upnp", "port-restricted", "open"])
def test_a_host_has_no_addresses_but_its_profiles(natlab: Factory, name: str) -> None:
    lab = natlab(name, "dual-stack")
    assert "inet6" not in lab.a.run(["ip", "-6", "addr", "show", "dev", "eth0"]).stdout
    assert "fe80" not in lab.b.run(["ip", "-6", "addr", "show", "dev", "eth0"]).stdout
