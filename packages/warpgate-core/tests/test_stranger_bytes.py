"""What strangers' word may cost a node, from end to end: one purse for all their attempts and dials."""

from __future__ import annotations

from typing import ClassVar

import pytest

from warpgate.identity import Identity
from warpgate.net.constants import IP4, TCP
from warpgate.node import addressing
from warpgate.plugin import Plugin
from warpgate.protocol.proto_msg import ConMsg
from warpgate.traversal.combine import responder_path
from warpgate.traversal.limits import KEPT_FOR_ATTEMPTS, SIGNAL_DIAL_BYTES
from warpgate.traversal.plan import Combination

pytestmark = pytest.mark.usefixtures("leaks")


class Idle(Plugin):
    name, transport, phase = "idle", "tcp", "direct"

    async def run(self, reply=None):
        """Wait."""


class Echoing(Plugin):
    """The initiator waits; the responder dials it, and pays."""

    name, transport, phase = "echoing", "tcp", "direct"
    paid: ClassVar[list[bool]] = []

    async def run(self, reply=None):
        if self.initiator:
            self.register_inbound()
            await self.send_signal_msg(ConMsg())
            self.result.set_result(await self.wait_for_inbound())
            return
        ip, port = self.dest_info["ip"], self.dest_info["port"]
        self.budget.take(ip, 1, 480)
        self.paid.append(self.manager.stranger_bytes._total == 480)
        self.result.set_result(await (await self.bind()).connect((ip, port), TCP))


def responder(node, peer):
    """Return an attempt that a peer has asked for."""
    msg = ConMsg()
    msg.meta.af = IP4
    path = responder_path(node.peer_address, peer, node.ifs, msg, Idle.route_types, False)
    return node.traversal.create_attempt(
        Combination("idle", "direct", "idle", path), peer, "a" * 15
    )


async def test_only_strangers_attempts_pay(start, make_address):
    node = await start(Idle)
    purse = node.traversal.stranger_bytes
    peer = make_address(["127.0.0.1"], machine=node.peer_address.machine)
    attempt = responder(node, peer)
    assert attempt.plugin.budget.purse is purse
    attempt.lose("the test is over")
    node.traversal.limits.befriend(peer.node_id)
    attempt = responder(node, peer)
    assert attempt.plugin.budget.purse is None
    attempt.lose("the test is over")
    other = await start(Idle)
    plugin = await node.connect(IP4, 1, other.address(), "idle")
    assert plugin.budget.purse is None  # whom this node itself calls
    plugin.result.cancel()


async def test_answers_dial_strangers_only_while_there_is_enough(start, make_address, monkeypatch):
    node = await start(Idle)
    purse = node.traversal.stranger_bytes
    way = (node.loopback, IP4, "198.51.100.7", 4000)  # as if this node were on the internet
    monkeypatch.setattr(addressing, "direct_targets", lambda *_: [way])
    strangers = [make_address(["198.51.100.7"], identity=Identity.generate()) for _ in range(2)]
    dials = 0
    while node._direct_targets(strangers[dials % 2]):
        dials += 1
    assert dials == (100_000 - KEPT_FOR_ATTEMPTS) // SIGNAL_DIAL_BYTES
    assert node.stats["signal_dials_limited"] == 1
    assert purse.take(KEPT_FOR_ATTEMPTS)  # what attempts need is still there
    node.traversal.limits.befriend(strangers[0].node_id)
    assert node._direct_targets(strangers[0])


async def test_what_a_peer_has_had_itself_is_nobodys_loss(start):
    """A stranger's call succeeds: what was sent to it meanwhile does not count."""
    alice, bob = await start(Echoing), await start(Echoing)
    plugin = await alice.connect(IP4, 1, bob.address(), "echoing")
    pipe = await plugin.result
    assert pipe is not None
    theirs = await bob.accept()
    assert bob.traversal.stranger_bytes._total == 0
    assert Echoing.paid == [True]
    await pipe.close()
    await theirs.close()
