"""What two sides do about ports that can't be foretold, in numbers; PURE.

- ``few``: nothing has to be guessed; both write to where the other is, a few times.
- ``guess``: one side (hard) has a random port for every destination, the other (easy) one port for
  all. Hard's sockets each write to easy's endpoint, easy writes from there to guessed ports.
- ``sweep``: both are hard, and have few ports. Each side's sockets all write to one port of the
  other's, so that nearly all its own ports lead there; when the other one's port that is aimed
  at comes up, it leads to a port that comes up here. No two flows need the same mapping.
- ``none``: the odds are too bad; a relay is quicker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from warpgate_plugin_punch.random_probe import odds
from warpgate_plugin_punch.random_probe.messages import SideNumbers
from warpgate_plugin_punch.random_probe.odds import HIGHEST_PORT, LOWEST_PORT, MAX_PACKETS

if TYPE_CHECKING:
    import random

    from warpgate_plugin_punch.common.facts import SideFacts

Mode = Literal["few", "guess", "sweep", "none"]

FEW: Final = 9
"""Packets where nothing has to be guessed."""
NEAR_AT_S: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35)
"""When they leave where no NAT is in the way."""
FEW_AT_S: Final = (0.0, 0.03, 0.06, 0.12, 0.2, 0.3, 0.45, 0.65, 0.9)
TRY_ABOVE: Final = 0.5
"""Below this probability nobody sprays."""
UNSEEN: Final = 6
"""Ports of a block that other mappings are expected to have without our knowing."""
COUNTED: Final = 64
"""How many of its next ports a NAT that counts is expected to use for a spray."""
PACKETS_PER_S: Final = 990  # and BURST at once: at most 1,000 in any second (WIRE.md section 5)
BURST: Final = 10


@dataclass(frozen=True, slots=True)
class SprayPlan:
    """What both sides do.

    Attributes:
        mode: see the module.
        first, second: how many packets the initiator and the responder send in one pass; of a
            hard side each comes from another socket, of an easy one each goes to another port.
        odds: the probability that they meet.
        ports: of the range in which they meet; for ``sweep`` of the greater one.

    """

    mode: Mode
    first: int = 0
    second: int = 0
    odds: float = 0.0
    ports: int = 0

    def packets(self, initiator: bool) -> int:
        """Return how many packets one side sends in one pass."""
        return self.first if initiator else self.second

    def __str__(self) -> str:
        if self.mode == "few":
            return "a few probes: no port had to be guessed"
        return f"{self.first} x {self.second} probes, {odds.text(self.odds)}"


def ports_of(facts: SideFacts, counter: int | None) -> tuple[int, int, int]:
    """Return (low, high, stride) of the ports that a hard side's next mappings get.

    Args:
        facts: its NAT's.
        counter: the port that a NAT which counts has given last, where a server has shown it.

    """
    if facts.counting and counter is not None:
        span = facts.step * COUNTED
        near, far = counter + facts.step, counter + span
        if min(near, far) >= LOWEST_PORT and max(near, far) <= HIGHEST_PORT:
            return min(near, far), max(near, far), abs(facts.step)
    low, high = facts.block or (LOWEST_PORT, HIGHEST_PORT)
    return max(low, LOWEST_PORT), max(high, LOWEST_PORT), 1


def count_ports(side: SideNumbers) -> int:
    """Return how many ports a hard side's mapping may have."""
    return max(0, side.high - max(side.low, LOWEST_PORT)) // side.stride + 1


def list_ports(side: SideNumbers) -> Sequence[int]:
    """Return those ports, upwards."""
    return range(max(side.low, LOWEST_PORT), max(side.high, LOWEST_PORT) + 1, side.stride)


def decide(
    initiator: SideNumbers, responder: SideNumbers, *, sockets: int = 512, guesses: int = 900
) -> SprayPlan:
    """Say what both sides do.

    Args:
        initiator: the one who called.
        responder: the other one.
        sockets: the most sockets that one side opens.
        guesses: how many guesses are made in the whole range of ports.

    """
    hard = [side for side in (initiator, responder) if not side.facts.easy]
    easy = [side for side in (initiator, responder) if side.facts.easy]
    if not hard or (easy and not easy[0].facts.by_port):
        return SprayPlan("few", FEW, FEW, 1.0)
    if easy:
        plan = _guess(hard[0], easy[0], sockets, guesses, hard[0] is initiator)
    else:
        plan = _sweep(initiator, responder, sockets)
    return plan if plan.odds >= TRY_ABOVE else SprayPlan("none", odds=plan.odds, ports=plan.ports)


def _guess(
    hard: SideNumbers, easy: SideNumbers, sockets: int, guesses: int, first: bool
) -> SprayPlan:
    ports = count_ports(hard)
    most = min(sockets, hard.sockets, hard.packets)
    limit = min(MAX_PACKETS, easy.packets)
    if odds.meeting(most, min(guesses, limit), ports) >= odds.ENOUGH:
        limit = min(guesses, limit)
    few = odds.fewest(ports, most, limit)
    if ports > (HIGHEST_PORT - LOWEST_PORT) // 2 and odds.meeting(*few, ports) >= odds.ENOUGH:
        few = most, max(few[1], min(guesses, limit))  # in the whole range a few more cost little
    chance = odds.meeting(*few, ports)
    one, other = few if first else (few[1], few[0])
    return SprayPlan("guess", one, other, chance, ports)


def _sweep(initiator: SideNumbers, responder: SideNumbers, sockets: int) -> SprayPlan:
    flows, chance, most = [], 1.0, 0
    for side in (initiator, responder):
        ports = count_ports(side)
        flows.append(min(ports, sockets, side.sockets, side.packets))
        free = ports if side.facts.counting else max(0, ports - UNSEEN)
        chance *= odds.covering(flows[-1], ports) * free / ports
        most = max(most, ports)
    return SprayPlan("sweep", flows[0], flows[1], chance, most)


def aim(side_low: int, side_high: int, stride: int, taken: set[int], rng: random.Random) -> int:
    """Return the port that the peer should aim at in a sweep.

    Args:
        side_low, side_high, stride: the own ports.
        taken: those that other mappings are known to have.
        rng: makes the choice.

    """
    ports = range(side_low, side_high + 1, stride)
    if stride > 1 or len(ports) <= COUNTED:
        return ports[len(ports) // 2]  # a NAT that counts passes the middle for certain
    for _ in range(2 * len(taken) + 1):
        port = rng.choice(ports)
        if port not in taken:
            return port
    return rng.choice(ports)


def guessed_ports(side: SideNumbers, count: int, rng: random.Random) -> list[int]:
    """Return ports of a hard side in random order, none twice."""
    ports = list_ports(side)
    return rng.sample(ports, min(count, len(ports)))


class Pacer:
    """Says how many packets may leave now: ``rate`` a second, ``burst`` at once."""

    def __init__(self, now: float, rate: float = PACKETS_PER_S, burst: int = BURST) -> None:
        self.rate = rate
        self.burst = burst
        self._room = float(burst)
        self._since = now

    def take(self, now: float) -> int:
        """Return how many packets may leave; they count as sent."""
        self._room = min(float(self.burst), self._room + (now - self._since) * self.rate)
        self._since = now
        whole = int(self._room)
        self._room -= whole
        return whole
