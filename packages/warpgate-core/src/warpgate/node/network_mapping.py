"""Keeps the listening sockets' mappings in the NATs alive, and knows how servers see the sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from warpgate.node.network_facts import Seen, agree, usable_external
from warpgate.node.network_known import Site

if TYPE_CHECKING:
    from warpgate.events import Counters
    from warpgate.net.datagram import DatagramSocket
    from warpgate.stun.transaction import Transaction

log = logging.getLogger("warpgate")

Address = tuple[str, int]

SECOND_S: Final = 5.0  # some carriers' NATs forget after 15 s a mapping that one packet made
KEEP_S: Final = 20.0  # RFC 4787 section 4.3 allows no less than 120; many a NAT has 30
KEEP_SPREAD: Final = 0.2
FRESH_S: Final = 5.0  # an answer of a server is not asked for again
SLOW_S: Final = 120.0  # where there is nothing to keep, only to notice another external address
BACK_OFF_CAP_S: Final = 300.0
SERVERS: Final = 4  # asked at once, when much is open
ANSWER_S: Final = 1.6  # for one server: three requests
GRACE_S: Final = 0.2


class MappingKeeper:
    """Asks STUN servers from a listening socket: all at first, then one every 20 s.

    Args:
        link: the socket.
        af: its family.
        servers: returns the servers' addresses of the socket's family.
        needed: returns whether there is a mapping to be kept, for what :attr:`seen` is.
        on_news: called when :attr:`seen` has changed, and after every failure and recovery.
        counters: counts ``stun-unanswered``, rounds in which no server answered.
        spread: returns a number from 0 to 1.

    Attributes:
        seen: how servers see the socket; None before the first answer.
        answered_s: when a server answered last, by the loop's clock; None: never.
        failures: rounds since then.
        task: does it all, until it is cancelled.

    """

    def __init__(
        self,
        link: DatagramSocket,
        af: int,
        *,
        servers: Callable[[], Sequence[Address]],
        needed: Callable[[Seen | None], bool],
        on_news: Callable[[MappingKeeper], None],
        counters: Counters,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self.link = link
        self._af = af
        self.seen: Seen | None = None
        self.answered_s: float | None = None
        self.failures = 0
        self._asked = asyncio.Event()
        self._servers = servers
        self._needed = needed
        self._on_news = on_news
        self._counters = counters
        self._spread = spread
        self._current = 0
        self._rounds = 0  # answered ones in a row, with the same answer
        self._now = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.task = self._loop.create_task(self._run())

    def check_now(self) -> None:
        """Ask at once: the network may be another."""
        self._now.set()

    def stop(self) -> None:
        """Stop asking; the socket stays open."""
        self.task.cancel()

    async def first_round(self) -> None:
        """Wait until servers have been asked once."""
        await self._asked.wait()

    async def _run(self) -> None:
        while not self.link.closed:
            self._now.clear()
            try:
                answered = await (self._check() if self.seen else self._ask_all())
            except Exception:  # the mapping is kept whatever happened to one question
                log.exception("asking STUN servers from %r failed", self.link)
                answered = False
            self._count(answered)
            self._asked.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._now.wait()

    def _pause(self) -> float:
        if self.failures:
            return min(SECOND_S * 2.0 ** min(self.failures, 16), BACK_OFF_CAP_S)
        kept = SECOND_S if self._rounds <= 1 else KEEP_S
        period = kept if self._needed(self.seen) else SLOW_S
        return period * (1 + KEEP_SPREAD * (2 * self._spread() - 1))

    def _count(self, answered: bool) -> None:
        failed = self.failures > 0
        if answered:
            self.answered_s, self.failures = self._loop.time(), 0
            self._rounds += 1
        else:
            self.failures += 1
            self._rounds = 0
            self._counters.count("stun-unanswered")
        if failed or not answered:
            self._on_news(self)

    async def _ask_all(self) -> bool:
        """Ask several servers, so that none of them is believed alone."""
        servers = list(self._servers())[:SERVERS]
        found = await self._ask(servers, GRACE_S)
        seen = agree((each.server, each.mapped) for each in found if each.mapped is not None)
        if seen is None:
            return False
        before = self.seen
        if before is not None and seen == Seen(before.external):
            seen = before  # nobody has contradicted it
        self.seen = seen
        self._current = servers.index(found[0].server)
        if seen != before:
            self._rounds = 0
            self._on_news(self)
        return True

    async def _check(self) -> bool:
        """Ask one server, the next where it is silent; all, when the answer is another."""
        servers = list(self._servers())
        for step in range(min(len(servers), SERVERS)):
            server = servers[(self._current + step) % len(servers)]
            found = await self._ask([server], 0.0)
            if found:
                self._current = (self._current + step) % len(servers)
                assert self.seen is not None
                same, mapped = self.seen.external, found[0].mapped
                if self.seen.agreed is False and mapped is not None:
                    mapped = (mapped[0], same[1])  # each server sees another port
                return True if mapped == same else await self._ask_all()
        return False

    async def _ask(self, servers: list[Address], grace_s: float) -> list[Transaction]:
        from warpgate.stun.client import mapped_addresses

        if not servers:
            return []
        done = await mapped_addresses(
            self.link, servers, grace_s=grace_s, timeout_s=ANSWER_S, counters=self._counters
        )
        return [each for each in done if usable_external(self._af, each.mapped)]


class Keepers:
    """The keepers of all listening sockets that lead outside.

    Args:
        needed: returns whether there is a mapping to be kept at a site.
        on_news: called with a site and whether its external ip has changed.
        counters, spread: as for :class:`MappingKeeper`.

    Attributes:
        servers: the STUN servers' addresses, by family.

    """

    def __init__(
        self,
        *,
        needed: Callable[[Site, Seen | None], bool],
        on_news: Callable[[Site, bool], None],
        counters: Counters,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self.servers: dict[int, list[Address]] = {}
        self._needed = needed
        self._on_news = on_news
        self._counters = counters
        self._spread = spread
        self._keepers: dict[Site, MappingKeeper] = {}
        self._externals: dict[Site, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, links: Mapping[Site, DatagramSocket]) -> None:
        """Have a keeper for each of these sockets, and no other."""
        for site, keeper in list(self._keepers.items()):
            if links.get(site) is not keeper.link:
                self.drop(site)
        for site, link in links.items():
            if site not in self._keepers and self.servers.get(link.af):
                keeper = MappingKeeper(
                    link,
                    link.af,
                    servers=partial(self._servers_of, link.af),
                    needed=partial(self._needed, site),
                    on_news=partial(self._heard, site),
                    counters=self._counters,
                    spread=self._spread,
                )
                self._keepers[site] = keeper
                self._tasks.add(keeper.task)
                keeper.task.add_done_callback(self._tasks.discard)

    def drop(self, site: Site) -> None:
        """Forget a site: its network is another one now."""
        keeper = self._keepers.pop(site, None)
        self._externals.pop(site, None)
        if keeper is not None:
            keeper.stop()

    def seen(self, site: Site) -> Seen | None:
        """Return how servers see a site's socket."""
        keeper = self._keepers.get(site)
        return None if keeper is None else keeper.seen

    def answered(self) -> dict[Site, bool]:
        """Return whether the last question of each site was answered."""
        return {site: keeper.failures == 0 for site, keeper in self._keepers.items()
                if keeper.failures or keeper.answered_s is not None}  # fmt: skip

    def answered_s(self) -> float | None:
        """Return when a server answered last, by the loop's clock."""
        times = [each.answered_s for each in self._keepers.values()]
        return max((each for each in times if each is not None), default=None)

    def check(self, *, everything: bool) -> None:
        """Ask at once, at least where the last answer is some seconds old."""
        now = asyncio.get_running_loop().time()
        for each in self._keepers.values():
            if everything or each.answered_s is None or now - each.answered_s > FRESH_S:
                each.check_now()

    async def first_rounds(self, timeout_s: float) -> None:
        """Wait until all have asked once, but not for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for each in list(self._keepers.values()):
                    await each.first_round()

    async def close(self) -> None:
        """Stop them all."""
        for site in list(self._keepers):
            self.drop(site)
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def _servers_of(self, af: int) -> Sequence[Address]:
        return self.servers.get(af, ())

    def _heard(self, site: Site, keeper: MappingKeeper) -> None:
        if self._keepers.get(site) is not keeper:
            return
        moved = False
        if keeper.seen is not None:
            before, now = self._externals.get(site), keeper.seen.external[0]
            self._externals[site] = now
            moved = before is not None and before != now
        self._on_news(site, moved)
