"""What observers of a node are told, and the counters of what was dropped.

Events reach ``warpgate_event(node, event)`` implementations; each is a frozen dataclass with plain values.
"""

from __future__ import annotations

from dataclasses import dataclass


class Counters(dict[str, int]):
    """Named counts of what happened; a missing name reads as 0."""

    def __missing__(self, name: str) -> int:
        return 0

    def count(self, name: str, n: int = 1) -> None:
        """Add ``n`` to the count called ``name``."""
        self[name] = self[name] + n


@dataclass(frozen=True, slots=True)
class Event:
    """The base of all events."""


@dataclass(frozen=True, slots=True)
class PluginRejected(Event):
    """A plugin failed to load or to install; ``reason`` is the one-line text of the rejection."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class ConnectStarted(Event):
    """``auto_connect`` has a plan for a peer."""

    peer_id: str
    combinations: int
    skipped: int


@dataclass(frozen=True, slots=True)
class AttemptStarted(Event):
    """An attempt's ``run`` is about to be called."""

    peer_id: str
    plugin_id: str
    strategy: str
    phase: str | None
    initiator: bool


@dataclass(frozen=True, slots=True)
class AttemptFinished(Event):
    """An attempt ended.

    ``status`` is ``won``, ``lost``, ``failed``, ``cancelled``, ``timeout`` or ``skipped``.
    """

    peer_id: str
    plugin_id: str
    strategy: str
    phase: str | None
    initiator: bool
    status: str
    cause: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ConnectFinished(Event):
    """``auto_connect`` ended; ``strategy`` is None when there was no path."""

    peer_id: str
    strategy: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class InboundPipe(Event):
    """A peer (or, with ``peer_id`` None, a plain client) reached this node."""

    peer_id: str | None
    strategy: str | None
    remote: tuple[str, int]


@dataclass(frozen=True, slots=True)
class NamePinned(Event):
    """A first connection by a name has proven the key behind it; the name is pinned from now on."""

    name: str
    peer_id: str


@dataclass(frozen=True, slots=True)
class PeerRefused(Event):
    """Somebody who claims to be ``peer_id`` asked to connect and may not (``conf["allow"]``)."""

    peer_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class NetworkChanged(Event):
    """This machine's network has changed; the node's address has been signed anew if need be.

    ``cause`` is ``interfaces``, ``external address`` or ``woke up``; ``interfaces`` are the names
    of those in use, ``external`` the external addresses that are known by now.
    """

    cause: str
    interfaces: tuple[str, ...]
    external: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dropped(Event):
    """Something that came from outside was refused; ``counter`` is its name in ``node.stats``."""

    counter: str
    detail: str
