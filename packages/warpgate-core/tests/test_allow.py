"""``conf["allow"]``: node ids, full names, and names by their pins."""

from __future__ import annotations

import pytest

from warpgate.errors import ConfigError, NoPathError
from warpgate.events import PeerRefused
from warpgate.hookspecs import hookimpl
from warpgate.identity import Identity
from warpgate.names.pins import Pins
from warpgate.names.rules import fingerprint
from warpgate.net.constants import TCP
from warpgate.node.auto_connect import connect
from warpgate.plugin import Plugin
from warpgate.traversal.allow import AllowList

ALICE, BOB, EVE = (Identity.generate() for _ in range(3))


class Dial(Plugin):
    name, transport, phase = "dial", "tcp", "direct"

    async def run(self, reply=None):
        route = await self.bind()
        dest = (self.dest_info["ip"], self.dest_info["port"])
        self.result.set_result(await route.connect(dest, TCP))


def test_none_is_anyone_and_nothing_is_nobody():
    assert AllowList(None, Pins(None)).refuses(EVE.public_key) is None
    assert "does not name it" in AllowList([], Pins(None)).refuses(ALICE.public_key)


@pytest.mark.parametrize(
    "entry",
    [
        ALICE.node_id,
        ALICE.node_id.upper(),
        f"alice@{fingerprint(ALICE.public_key)}",
        f"Alice@{ALICE.node_id}",
        "ALICE",
    ],
)
def test_who_may(entry):
    pins = Pins(None)
    pins.accept("alice", fingerprint(ALICE.public_key))
    allow = AllowList([entry, BOB.node_id], pins)
    assert allow.refuses(ALICE.public_key) is None
    assert allow.refuses(BOB.public_key) is None
    assert allow.refuses(EVE.public_key) is not None


def test_a_pin_that_comes_later_counts_and_one_that_goes_too(caplog):
    pins = Pins(None)
    allow = AllowList(["alice"], pins)
    assert "'alice', which is not pinned yet and so lets nobody in" in caplog.text
    assert allow.refuses(ALICE.public_key) is not None
    pins.accept("alice", fingerprint(ALICE.public_key))
    assert allow.refuses(ALICE.public_key) is None
    pins.accept("alice", fingerprint(EVE.public_key))
    assert allow.refuses(ALICE.public_key) is not None


def test_a_damaged_file_lets_nobody_in(tmp_path):
    pins = Pins(tmp_path)
    pins.accept("alice", fingerprint(ALICE.public_key))
    allow = AllowList(["alice"], pins)
    assert allow.refuses(ALICE.public_key) is None
    pins.path.write_text("damage\n")
    assert "line 1 is damaged" in allow.refuses(ALICE.public_key)


@pytest.mark.parametrize(
    "entry", ["al ice", "", f"al ice@{ALICE.node_id}", ALICE.node_id + "a" * 12]
)
def test_what_is_neither(entry):
    with pytest.raises(ConfigError, match=r'conf\["allow"\] holds'):
        AllowList([entry], Pins(None))


async def test_a_refused_peer_is_told_to_observers_and_gets_no_pipe(start):
    class Observer:
        @hookimpl
        def warpgate_event(self, event):
            if isinstance(event, PeerRefused):
                refused.append(event.peer_id)

    refused = []
    friend, stranger = await start(Dial), await start(Dial)
    node = await start(conf={"allow": ["friend"]})
    node.hooks.register(Observer())
    node.trust.pins.accept("friend", fingerprint(friend.identity.public_key))
    async with await connect(friend, node.address()) as pipe:
        assert pipe.peer_id == node.node_id
    assert refused == []
    with pytest.raises(NoPathError):
        await connect(stranger, node.address(), 1)
    assert set(refused) == {stranger.node_id}
    assert node.stats["peers_refused"] == len(refused) > 0
