"""A node's interfaces and sockets when the machine's addresses change."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace

import pytest

from warpgate.errors import ConfigError
from warpgate.net.constants import IP4
from warpgate.net.nic import Interface, InterfaceAddress
from warpgate.node import addressing, place
from warpgate.node.place import ListeningPlace

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")


def nic(name, index, *ips):
    found = tuple(InterfaceAddress(IP4, ip, 24, "private") for ip in ips)
    return Interface(name, index, found, gateways={IP4: "127.0.9.1"})


LO = Interface("lo", 9, (InterfaceAddress(IP4, "127.0.0.1", 8, "loopback"),), loopback=True)
ETH0, ETH1 = nic("eth0", 1, "127.0.1.1"), nic("eth1", 2, "127.0.2.1")


@pytest.fixture
def machine(monkeypatch):
    now = [ETH0]
    for module in (addressing, place):
        monkeypatch.setattr(module, "list_interfaces", lambda: list(now))
        monkeypatch.setattr(module, "loopback_interface", lambda: LO)
    monkeypatch.setattr(
        place, "own_ips", lambda: {address.ip for each in now for address in each.addresses}
    )
    monkeypatch.setattr(addressing, "is_loopback", lambda ip: ip == "127.0.0.1")
    monkeypatch.setattr(place, "_exists", lambda name: name.startswith("eth"))
    return now


async def opened(ifs=None, ip=None):
    made = ListeningPlace(ifs, ip, 0)
    made.choose()
    await made.open(0, reuse_addr=False)
    return made


def unchanged(_nic, endpoint):
    return endpoint


def listens(made, ip):
    """Whether TCP and UDP are listened on."""
    with socket.socket() as tcp:
        if tcp.connect_ex((ip, made.port)):
            return False
    link = made.socket(IP4, ip)
    return link is not None and link.local == (ip, made.port)


async def test_nothing_new_is_nothing_to_do(machine) -> None:
    made = await opened()
    assert not made.describe(unchanged)
    assert not await made.refresh()
    assert not await made.refresh()
    await made.close()


async def test_a_new_interface_is_listened_on_and_described(machine) -> None:
    made = await opened()
    before = made.socket(IP4, "127.0.1.1")
    assert made.socket(IP4, "127.0.2.1") is None
    machine.append(ETH1)
    assert await made.refresh()
    assert made.describe(unchanged)
    assert made.ifs == [ETH0, ETH1]
    assert [record.index for record in made.records] == [1, 2]
    assert made.own_ips == {"127.0.1.1", "127.0.2.1"}
    assert made.socket(IP4, "127.0.1.1") is before
    assert listens(made, "127.0.2.1")
    await made.close()


async def test_a_vanished_address_is_not_described_and_its_sockets_come_back_with_it(
    machine,
) -> None:
    machine.append(ETH1)
    made = await opened()
    link = made.socket(IP4, "127.0.2.1")
    machine.remove(ETH1)
    assert await made.refresh()
    assert made.describe(unchanged)
    assert made.ifs == [ETH0]
    assert made.socket(IP4, "127.0.2.1") is None
    assert not link.closed  # pipes may live on it
    machine.append(ETH1)
    assert await made.refresh()
    assert made.socket(IP4, "127.0.2.1") is link
    assert listens(made, "127.0.2.1")
    await made.close()
    assert link.closed


async def test_facts_alone_change_the_records(machine) -> None:
    made = await opened()
    assert made.describe(lambda _nic, endpoint: replace(endpoint, nat=3))
    assert not made.describe(lambda _nic, endpoint: replace(endpoint, nat=3))
    assert made.records[0].endpoints[0].nat == 3
    await made.close()


async def test_only_wanted_interfaces_are_taken(machine) -> None:
    made = await opened(["eth0"])
    machine.append(ETH1)
    assert await made.refresh()  # the machine has another address, which is its own
    assert not made.describe(unchanged)
    assert made.ifs == [ETH0]
    machine[:] = [nic("eth0", 1, "127.0.1.7")]
    assert await made.refresh()
    assert made.describe(unchanged)
    assert listens(made, "127.0.1.7")
    await made.close()


async def test_an_interface_that_was_given_as_an_object_is_looked_up_again(machine) -> None:
    machine.append(ETH1)
    made = await opened([ETH0, ETH1])
    machine[:] = [nic("eth0", 1, "127.0.1.7")]
    await made.refresh()
    made.describe(unchanged)
    assert [each.local_ip(IP4) for each in made.ifs] == ["127.0.1.7"]
    await made.close()


async def test_one_that_the_user_made_up_stays(machine) -> None:
    made_up = nic("mine", 5, "127.0.5.1")
    made = await opened([made_up])
    machine[:] = [ETH1]
    await made.refresh()
    assert not made.describe(unchanged)
    assert made.ifs == [made_up]
    await made.close()


async def test_when_the_wanted_address_is_away_all_stays_and_it_is_said(machine, caplog) -> None:
    made = await opened(ip="127.0.1.1")
    machine[:] = [ETH1]
    assert not await made.refresh()
    assert "127.0.1.1" in caplog.text
    assert listens(made, "127.0.1.1")
    machine[:] = [ETH0]
    assert not await made.refresh()
    await made.close()


async def test_the_last_interface_s_end_leaves_loopback(machine) -> None:
    made = await opened()
    machine[:] = [LO]
    assert await made.refresh()
    assert made.describe(unchanged)
    assert made.ifs == [LO]
    assert listens(made, "127.0.0.1")
    await made.close()


async def test_the_listening_socket_by_address_and_by_interface(machine) -> None:
    machine.append(ETH1)
    made = await opened()
    assert made.socket(IP4, None) is made.socket(IP4, "127.0.1.1")
    assert made.socket(IP4, ETH1) is made.socket(IP4, "127.0.2.1")
    assert made.socket(IP4, LO) is made.socket(IP4, "127.0.0.1")
    assert made.socket(IP4, "127.0.7.7") is None
    assert made.socket(socket.AF_INET6, None) is None
    await made.close()


def test_arguments_are_checked_when_the_node_is_made() -> None:
    with pytest.raises(ConfigError, match="port=70000"):
        ListeningPlace(None, None, 70000)
