"""A man in the middle of the path between two nodes: what he can do is to hold up or to end, nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from warpgate.hello.keys import ROLE_RESPONDER, signed_data
from warpgate.hello.messages import (
    DATAGRAM_SIZE,
    M1,
    M2,
    MAGIC_SIZE,
    PREFIX,
    HelloFields,
    pack_m1,
    pack_m2,
    unpack_m1,
    unpack_m2,
)
from warpgate.identity import Identity
from warpgate_natlab.lab import Lab
from warpgate_natlab.middle import TCP, UDP, Datagram, Middle, relay
from warpgate_natlab.namespaces import why_not
from warpgate_natlab.session import START_S, Peer

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
]
WAYS = ["direct_connect", "udp_punch"]
SAFE_S = 12.0


class Forger:
    """Puts Mallory's hello in the place of a node's, under Mallory's key and with her own share.

    Args:
        kind: ``M1`` or ``M2``: whose place she takes, the initiator's or the responder's.
        pose: she says to be the node, and signs with her key nevertheless; else she names herself.

    """

    def __init__(self, kind: int, pose: bool) -> None:
        self.mallory = Identity.generate()
        self.forged = 0
        self._kind = kind
        self._pose = pose
        self._m1 = b""

    def __call__(self, datagram: Datagram, to_b: bool) -> list[bytes]:
        data, at = datagram.payload, MAGIC_SIZE + 2 * (datagram.protocol == TCP)
        if not data.startswith(PREFIX) or data[len(PREFIX)] not in (M1, M2):
            return [datagram.packet]
        kind, head, body = data[len(PREFIX)], data[:at], data[at:]
        if kind == M1:
            self._m1 = head[:MAGIC_SIZE] + body
        if kind != self._kind:
            return [datagram.packet]
        body = self._body(kind, body, head[:MAGIC_SIZE])
        self.forged += 1
        return [datagram.bearing(head + body)]

    def _body(self, kind: int, body: bytes, head: bytes) -> bytes:
        fields = unpack_m1(body) if kind == M1 else unpack_m2(body)[0]
        mine = HelloFields(
            plugin_id=fields.plugin_id,
            sender=fields.sender if self._pose else self.mallory.public_key,
            receiver=fields.receiver,
            nonce=fields.nonce,
            share=self.mallory.exchange_key,
            capabilities=fields.capabilities,
        )
        if kind == M1:
            return pack_m1(mine, datagram=len(head + body) == DATAGRAM_SIZE)
        unsigned = pack_m2(mine, datagram=False)
        return unsigned + self.mallory.sign(signed_data(ROLE_RESPONDER, self._m1, head + unsigned))


class Scene:
    """Two nodes of one laboratory, and the man between them."""

    def __init__(self, middle: Middle, a: Peer, b: Peer) -> None:
        self.middle = middle
        self.a, self.b = a, b
        a.answer(START_S)
        there = b.answer(START_S)
        self.address, self.node_id = there["address"], there["node_id"]

    def call(self, way: str, timeout: float = 6.0) -> dict[str, Any]:
        """Let a call b once, and be sure that nobody else was reached."""
        request = {
            "do": "connect",
            "address": self.address,
            "timeout": timeout,
            "options": {"plugins": [way]},
            "forget": True,
        }
        before = self.middle.passed
        answer = self.a.ask(request, timeout + SAFE_S)
        assert self.middle.passed > before, "nothing came by the man in the middle"
        if answer["strategy"]:
            assert (answer["peer_id"], answer["sealed"]) == (self.node_id, True)
        return answer


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with (
        Lab("open", "open") as lab,
        Middle(lab) as middle,
        Peer(lab, "a", {}, warm=False) as a,
        Peer(lab, "b", {}, warm=False) as b,
    ):
        yield Scene(middle, a, b)


@pytest.fixture(autouse=True)
def honest_again(scene: Scene) -> Iterator[None]:
    yield
    scene.middle.change = relay


@pytest.mark.parametrize("way", WAYS)
def test_he_listens(scene: Scene, way: str) -> None:
    heard: list[bytes] = []

    def note(datagram: Datagram, _to_b: bool) -> list[bytes]:
        heard.append(datagram.payload)
        return [datagram.packet]

    scene.middle.change = note
    assert scene.call(way)["ok"]
    assert sum(map(len, heard)) > 500


@pytest.mark.parametrize("way", WAYS)
def test_he_drops_and_repeats(scene: Scene, way: str) -> None:
    rng = random.Random(1)
    kept: list[bytes] = []

    def meddle(datagram: Datagram, _to_b: bool) -> list[bytes]:
        if not datagram.payload:
            return [datagram.packet]
        kept.append(datagram.packet)
        if rng.random() < 0.2:
            return []
        return [datagram.packet, *rng.sample(kept[-40:], min(3, len(kept)))]

    scene.middle.change = meddle
    # What is lost is sent again: it holds up, and may hold up for longer than the call's time.
    answers = [scene.call(way, 10.0) for _ in range(2)]
    assert any(answer["ok"] for answer in answers), answers


@pytest.mark.parametrize("way", WAYS)
def test_he_alters(scene: Scene, way: str) -> None:
    """Each call has one altered packet: ``ok`` would mean that the echo came back unaltered."""
    altered: set[int] = set()

    def alter(number: int) -> Any:
        rng, count = random.Random(number), 0

        def change(datagram: Datagram, _to_b: bool) -> list[bytes]:
            nonlocal count
            wanted = UDP if way == "udp_punch" else TCP
            if datagram.protocol != wanted or not datagram.payload:
                return [datagram.packet]
            count += 1
            if count != number:
                return [datagram.packet]
            data = bytearray(datagram.payload)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            altered.add(number)
            return [datagram.bearing(bytes(data))]

        return change

    ok = 0
    for number in range(1, 7):
        scene.middle.change = alter(number)
        answer = scene.call(way, 3.0)
        ok += answer["ok"]
        assert answer["ok"] or answer["error"] or answer["report"]["attempts"], answer
    assert len(altered) >= 4
    if way == "udp_punch":  # one datagram less: it is repeated
        assert ok >= 4


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "pose"), [(M2, True), (M2, False), (M1, True)])
def test_he_says_his_own_hello(scene: Scene, way: str, kind: int, pose: bool) -> None:
    scene.middle.change = forger = Forger(kind, pose)
    answer = scene.call(way, 1.2)
    assert forger.forged
    assert not answer["ok"], answer
    assert answer["strategy"] is None
    causes = [attempt["cause"] for attempt in answer["report"]["attempts"]]
    words = {M2: "verif" if pose else "another peer", M1: "verif" if pose else "another node"}[kind]
    assert any(words in cause for cause in causes), causes


def test_the_nodes_are_none_the_worse(scene: Scene) -> None:
    for way in WAYS:
        assert scene.call(way)["ok"]
