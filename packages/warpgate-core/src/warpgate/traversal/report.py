"""What happened to a connect call: every attempt, every skip, as data and as one line each."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from warpgate.net.constants import af_name, route_type_name


class SkipReason(Enum):
    """Why a combination was not tried; the value is the text a user reads."""

    NO_STRATEGY = "no strategy is installed"
    REMOVED = "it was removed, or the node closed, before its turn"
    AUXILIARY = "it is an auxiliary, which auto_connect never dispatches"
    FILTERED = "excluded by an argument of this call"
    FAMILY_NOT_SHARED = "the peers have no address of this family in common"
    ROUTE_UNSUPPORTED = "the strategy does not support this route type"
    OTHER_MACHINE = "loopback reaches only peers on this machine"
    NO_LOCAL_ADDRESS = "this machine has no address for this route type"
    NO_PEER_ADDRESS = "the peer has no address for this route type"
    OWN_ADDRESS = "the peer's address is also an address of this machine"
    SAME_AS_OTHER_ROUTE = "another route type leads to the same address"
    NO_ROUTE = "no interface of this machine leads to that address"
    LINK_LOCAL = "a link-local address is reachable only on its own link"
    RELAY_NEVER = 'relays are switched off (conf["relay"] = "never")'
    RELAY_LIMIT = "over turn_limit, the most relay attempts of one call"
    TOO_MANY = "more candidates than one strategy may try"
    NO_TIME = "the call was over before its turn"
    NOT_NEEDED = "another attempt had won before this one's turn"
    IMPOSSIBLE = "it can't work between these networks"
    OTHER_NETWORK = "a private address behind another NAT than ours"
    TOO_SOON = "a spray went to this address less than a minute ago"
    NO_TURN_SERVER = "neither side has a TURN server"
    NOTHING_TO_TRY = "the strategy found nothing that it could try"
    PEER_CHOSE_LOOPBACK = "a peer may name a loopback address only over loopback"
    PEER_CHOSE_PRIVATE = (
        "a peer may name a private address only on a network this machine is part of"
    )
    PEER_CHOSE_UNUSABLE = "the peer named an address that can't be dialled"


@dataclass(frozen=True, slots=True)
class Skip:
    """Something the plan left out, or a strategy that found nothing to try (``AttemptSkipped``).

    Attributes:
        strategy: the strategy's name.
        reason: why.
        af, route_type: the family and route type, None where the skip covers all of them.
        detail: what the reason is about, such as an address.

    """

    strategy: str
    reason: SkipReason
    af: int | None = None
    route_type: int | None = None
    detail: str = ""

    @property
    def kind(self) -> tuple[str, int | None, int | None]:
        """What was left out: strategy, family, route type."""
        return self.strategy, self.af, self.route_type

    def __str__(self) -> str:
        parts = [self.strategy]
        if self.af is not None:
            parts.append(af_name(self.af))
        if self.route_type is not None:
            parts.append(route_type_name(self.route_type))
        tail = f" ({self.detail})" if self.detail else ""
        return f"{' '.join(parts)}: skipped, {self.reason.value}{tail}"


@dataclass(slots=True)
class AttemptOutcome:
    """What became of one attempt.

    Attributes:
        strategy, phase: the strategy's name and phase.
        af, route_type: the combination's family and route type.
        local, remote: interface or address on either side, as text.
        plugin_id: the attempt's id.
        started_s, seconds: when it started after the call, and how long it took.
        status: ``won``, ``lost``, ``failed``, ``timeout``, ``cancelled``; ``running`` before its end.
            An attempt that was ``skipped`` stands in a report's skips instead.
        cause: why it did not win, in words; empty for the winner.
        notes: what else the strategy has to tell, such as what failed before something else worked.
        pipe: what the winner's pipe is: a stream or datagrams, and how it goes.

    """

    strategy: str
    phase: str | None
    af: int
    route_type: int
    local: str
    remote: str
    plugin_id: str
    started_s: float = 0.0
    seconds: float = 0.0
    status: str = "running"
    cause: str = ""
    notes: list[str] = field(default_factory=list)
    pipe: str = ""

    def __str__(self) -> str:
        tail = "".join(f", {text}" for text in (self.cause, self.pipe) if text)
        notes = [note for note in self.notes if note not in self.cause]
        tail += f" (noted: {'; '.join(notes)})" if notes else ""
        return (
            f"{self.strategy} {af_name(self.af)} {route_type_name(self.route_type)} "
            f"{self.local} → {self.remote} ({self.phase or 'auxiliary'}, "
            f"{self.seconds * 1000:.1f} ms): {self.status}{tail}"
        )


@dataclass(slots=True)
class Report:
    """The whole story of one connect call.

    Attributes:
        peer_id: the peer's node id, empty when the address could not be resolved.
        outcomes: one entry per attempt, in the order in which they started.
        skips: what was not tried, and why.
        seconds: how long the call took.
        winner: the winning outcome, or None.
        error: the exception that explains a failure, or None.

    """

    peer_id: str = ""
    outcomes: list[AttemptOutcome] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    seconds: float = 0.0
    winner: AttemptOutcome | None = None
    error: BaseException | None = None

    def lines(self) -> list[str]:
        """Return one line of text per attempt, then one per skip."""
        return [str(outcome) for outcome in self.outcomes] + [str(skip) for skip in self.skips]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return {
            "peer_id": self.peer_id,
            "seconds": self.seconds,
            "winner": self.winner.strategy if self.winner else None,
            "error": str(self.error) if self.error else None,
            "attempts": [
                {name: getattr(outcome, name) for name in AttemptOutcome.__slots__}
                | {"notes": list(outcome.notes)}
                for outcome in self.outcomes
            ],
            "skips": [
                {
                    "strategy": skip.strategy,
                    "reason": skip.reason.name,
                    "text": skip.reason.value,
                    "af": skip.af,
                    "route_type": skip.route_type,
                    "detail": skip.detail,
                }
                for skip in self.skips
            ],
        }

    def __str__(self) -> str:
        if self.winner is not None:
            head = f"connected by {self.winner.strategy} in {self.seconds * 1000:.1f} ms"
        else:
            # A NoPathError holds the lines of the attempts as well: its first line is enough.
            why = str(self.error).partition("\n")[0].rstrip(":") if self.error else ""
            head = f"no path after {self.seconds:.2f} s" + (f": {why}" if why else "")
        return "\n".join([head, *("  " + line for line in self.lines())])
