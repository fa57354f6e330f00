"""What may be sent to addresses that only a peer's message names."""

from __future__ import annotations

import asyncio

import pytest

from warpgate.nat.report import NetReport
from warpgate.net.constants import IP4, LOOPBACK_BIND, NIC_BIND
from warpgate.plugin import Plugin, new_plugin_id
from warpgate.protocol.proto_msg import ConMsg
from warpgate.signalling.transport import SignalOrigin
from warpgate.traversal.report import SkipReason

pytestmark = pytest.mark.usefixtures("leaks")
REMOTE = SignalOrigin("test", False, None, "a test")
LOOPBACK = SignalOrigin("test", True, None, "a test")


class Wait(Plugin):
    name, transport, phase = "wait", "udp", "spray"

    async def run(self, reply=None):
        await asyncio.Event().wait()


async def test_an_initiator_may_write_to_public_addresses_and_to_those_of_the_peer(
    start, make_address
):
    node = await start(Wait)
    peer = make_address(
        ["127.0.0.1", ], machine=node.peer_address.machine, ext={"127.0.0.1": "10.1.2.3"}
    )  # fmt: skip
    plugin = await node.connect(IP4, NIC_BIND, peer, "wait")
    assert plugin.refuses("198.51.100.7") is None
    assert plugin.refuses("10.1.2.3") is None
    assert plugin.refuses("10.1.2.4") == SkipReason.PEER_CHOSE_PRIVATE.value


@pytest.mark.parametrize("same", [False, True])
async def test_an_initiator_never_takes_its_own_loopback_for_another_machines(
    start, make_address, same
):
    node = await start(Wait)
    peer = make_address(["127.0.0.1"], machine=node.peer_address.machine)
    plugin = await node.connect(IP4, LOOPBACK_BIND, peer, "wait")
    plugin.same_machine = same
    assert plugin.refuses("127.0.0.1") == (None if same else SkipReason.PEER_CHOSE_LOOPBACK.value)


@pytest.mark.parametrize("origin", [REMOTE, LOOPBACK])
async def test_a_responder_follows_the_rules_of_section_5(start, make_address, origin):
    node = await start(Wait)
    peer = make_address(
        ["127.0.0.1"], machine=node.peer_address.machine, ext={"127.0.0.1": "10.1.2.3"}
    )
    msg = ConMsg()
    msg.meta.plugin_name, msg.meta.pipe_id = "wait", new_plugin_id()
    msg.meta.af, msg.meta.route_type, msg.meta.src_buf = IP4, LOOPBACK_BIND, peer.raw
    node.traversal.signals.on_signal(peer, msg, LOOPBACK)
    (plugin,) = node.traversal.plugins.values()
    node.traversal.attempt_of(plugin).origin = origin
    assert plugin.refuses("198.51.100.7") is None
    # That the peer's own address names it makes a private address no better here.
    assert plugin.refuses("10.1.2.3") == SkipReason.PEER_CHOSE_PRIVATE.value
    near = origin is LOOPBACK
    assert plugin.refuses("127.0.0.1") == (None if near else SkipReason.PEER_CHOSE_LOOPBACK.value)


async def test_what_nat64_makes_of_an_address_counts(start, make_address):
    """By a network's own prefix, too, whose addresses look like any public ones."""
    node = await start(Wait)
    peer = make_address(["127.0.0.1"], machine=node.peer_address.machine)
    plugin = await node.connect(IP4, NIC_BIND, peer, "wait")
    inside, outside = "2001:db8:64::a01:203", "2001:db8:64::c633:6407"
    assert plugin.refuses(inside) is None  # nobody knows of the prefix
    node.network.nat64.learn(NetReport(nat64=True, nat64_prefix="2001:db8:64::/96"))
    assert plugin.refuses(inside) == SkipReason.PEER_CHOSE_PRIVATE.value
    assert plugin.refuses(outside) is None
