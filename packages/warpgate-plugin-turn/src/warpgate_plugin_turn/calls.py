"""What the parts of an attempt ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from warpgate import Pipe
from warpgate.net.addresses import Address

Way = Callable[[Address], Coroutine[Any, Any, Address]]
"""Tells by which address a server is reached from here."""


@dataclass(frozen=True, slots=True)
class Calls:
    """The attempt, as those see it who open its ways.

    Attributes:
        hand_over: takes each pipe.
        spawn: runs a task that ends with the attempt.
        tell: sends this side's facts to the peer, where they have changed.
        allocate: gets a relay of this side's own, unless that was begun already.
        check_hopeless: ends the attempt where nothing can come any more.

    """

    hand_over: Callable[[Pipe], None]
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    tell: Callable[[], Coroutine[Any, Any, None]]
    allocate: Callable[[], None]
    check_hopeless: Callable[[], None]
