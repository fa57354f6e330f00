"""What a node knows of its network: NATs, external addresses, changes.

Everything happens in the background: a node's start waits for nothing here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from warpgate.events import NetworkChanged
from warpgate.nat.report import NetReport
from warpgate.net.constants import IP6, af_name
from warpgate.net.monitor import NetworkMonitor
from warpgate.net.nat64 import Nat64
from warpgate.node.network_cache import NetworkCache, network_keys
from warpgate.node.network_facts import needs_keeping, usable_external, with_facts
from warpgate.node.network_known import KnownNetworks, Site
from warpgate.node.network_mapping import Keepers

if TYPE_CHECKING:
    from warpgate.nat.report import PathReport
    from warpgate.net.datagram import DatagramSocket
    from warpgate.net.nic import Interface
    from warpgate.node.network_facts import Seen
    from warpgate.node.node import Node
    from warpgate.protocol.peer_address import Endpoint
    from warpgate.stun.probe import Place

log = logging.getLogger("warpgate")

Address = tuple[str, int]

MAX_SITES: Final = 6
RETRY_S: Final = 5.0  # when no server answered; doubled every time
RETRY_CAP_S: Final = 300.0
CONFIRM_S: Final = 1.0  # before "UDP is blocked" is believed of a network where it was not
SURVEY_GAP_S: Final = 3.0
SETTLE_S: Final = 0.4  # a first report waits so long for the listening sockets' own answers


class NetworkWatch:
    """What a node knows of its network; keeps it up to date, and the node's address with it.

    Args:
        node: whose network.

    """

    def __init__(self, node: Node) -> None:
        self.nat64 = Nat64()  # the way to IPv4 from where only IPv6 leads outside
        self._node = node
        self._known = KnownNetworks()
        self._keepers = Keepers(needed=self._needed, on_news=self._heard, counters=node.stats)
        self._forwarded: dict[Site, Address] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._arrivals: list[Callable[[], None]] = [self.nat64.forget]
        self._monitor: NetworkMonitor | None = None
        self._last: NetReport | None = None
        self._answered_s: float | None = None
        self._silent = False
        self._failures = 0  # surveys in a row without an answer
        self._closed = False
        self._networks = 0  # how often they were others
        self._reported = asyncio.Event()
        self._wanted = asyncio.Event()
        self._surveying: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._again: bool | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # What is known.

    @property
    def report(self) -> NetReport | None:
        """The newest report; of a known network at once, of another one after the first survey."""
        paths = self._known.paths()
        if self._last is None:
            return NetReport(paths=paths) if paths else None
        return replace(self._last, paths=(*paths, *(p for p in self._last.paths if p.nat64)))

    def path(self, af: int, interface: str | None = None) -> PathReport | None:
        """Return the facts of a family, of the best interface or of a certain one."""
        found = self.report
        return None if found is None else found.path(af, interface)

    def servers(self, af: int) -> list[Address]:
        """Return the STUN servers' addresses of a family; none until their names were looked up."""
        return list(self._keepers.servers.get(af, ()))

    @property
    def age_s(self) -> float | None:
        """Seconds since a server answered last; None: none has."""
        times = [self._keepers.answered_s(), self._answered_s]
        newest = max((each for each in times if each is not None), default=None)
        return None if newest is None else asyncio.get_running_loop().time() - newest

    @property
    def stale(self) -> bool:
        """Whether servers are silent, so that what is known may not hold any more."""
        answered = [
            answered
            for site, answered in self._keepers.answered().items()
            if (path := self._known.path(site)) is None or path.udp is not False
        ]
        return self._silent or (bool(answered) and not any(answered))

    @property
    def pending(self) -> bool:
        """Whether the first survey is under way."""
        return self._surveying is not None and not self._reported.is_set()

    async def ready(self, timeout_s: float = 5.0) -> NetReport | None:
        """Wait for the first survey's end, and return the report; at once where STUN is off."""
        if self._surveying is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._reported.wait()
        return self.report

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back when interfaces, or what the address says of them, have changed.

        Args:
            callback: called without arguments, after the address was signed anew.

        Returns:
            A function that ends it.

        """
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return unsubscribe

    def on_arrival(self, callback: Callable[[], None]) -> None:
        """Call back in another network, and when this one lets through what it did not before.

        What was learnt of servers in the meantime does not hold any more.

        Args:
            callback: called without arguments, until the node closes.

        """
        self._arrivals.append(callback)

    def back_online(self) -> None:
        """Look at the network anew: outside is reached after a time when it was not."""
        self._failures = 0
        self._wanted.set()
        self._keepers.check(everything=True)
        self._arrived()

    def ask_again(self) -> None:
        """Survey again at once where no server answered the last time: a call is waiting."""
        if self._silent:
            self._wanted.set()

    def set_port_mapping(self, af: int, interface: str, external: Address | None) -> None:
        """Let the address name an external port that a router forwards to the listening port.

        Args:
            af: the family.
            interface: the interface's name.
            external: the external ``(ip, port)``; None: there is no such mapping any more.

        Raises:
            ValueError: ``external`` is no host's address of the family.

        """
        if external is None:
            self._forwarded.pop((interface, af), None)
        elif usable_external(af, external):
            self._forwarded[interface, af] = external
        else:
            raise ValueError(f"{external!r} is no external address of {af_name(af)}")
        self._apply()

    # Life.

    def start(self) -> None:
        """Begin to watch; costs next to nothing here, and waits for nothing."""
        conf = self._node.conf
        self._monitor = NetworkMonitor(self._noticed)
        self._monitor.start()
        if conf["enable_stun_clients"] and conf["stun_servers"]:
            self._known.cache = NetworkCache(conf.folder)
            self._surveying = self._spawn(self._run())

    async def close(self) -> None:
        """Stop; idempotent."""
        if self._monitor is not None:
            self._monitor.close()
        self._closed = True
        self._callbacks.clear()
        self._arrivals.clear()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._keepers.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Surveys.

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self._look()
        self._apply()
        while True:
            self._wanted.clear()
            began = loop.time()
            try:
                self._silent = not await self._survey()
            except Exception:  # the watch outlives whatever a system or a server does
                log.exception("the survey of the network failed")
                self._silent = True
            self._reported.set()
            self._failures = self._failures + 1 if self._silent else 0
            pause: float | None = None
            if self._silent:
                pause = min(RETRY_S * 2.0 ** min(self._failures - 1, 16), RETRY_CAP_S)
            elif self._known.doubtful():
                pause = CONFIRM_S
            else:
                await asyncio.sleep(max(0.0, began + SURVEY_GAP_S - loop.time()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wanted.wait()

    async def _survey(self) -> bool:
        """Find out what the NATs do; returns whether any server answered."""
        from warpgate.stun.survey import survey

        node = self._node
        places, networks = self._places(), self._networks
        if not places:
            return True  # there is nothing to ask until the network changes
        texts = [str(each) for each in node.conf["stun_servers"]]
        async with asyncio.TaskGroup() as group:
            surveying = group.create_task(survey(texts, places=places, counters=node.stats))
            group.create_task(self._start_keepers(texts))
        report = surveying.result()
        if any(path.udp for path in report.paths):
            await self._keepers.first_rounds(SETTLE_S)
        self._look()  # routers are known by their hardware addresses now
        if networks != self._networks:
            self._wanted.set()
            return True  # that was another network
        udp_works = {site for site, answered in self._keepers.answered().items() if answered}
        answered = self._known.merge(report, udp_works, online=node.rendezvous.connected())
        if answered:
            self._answered_s = asyncio.get_running_loop().time()
        self._last = report
        self.nat64.learn(report)
        self._apply()
        return answered

    async def _start_keepers(self, servers: Sequence[str]) -> None:
        from warpgate.stun.survey import server_addresses

        found: dict[int, list[Address]] = {}
        for af, address in await server_addresses(servers):
            found.setdefault(af, []).append(address)
        if found:
            self._keepers.servers = found
        self._keep()

    def _places(self) -> list[Place]:
        from warpgate.stun.survey import usable_places

        place = self._node.place
        found = usable_places(place.nics)
        if place.ip is None:
            return found[:MAX_SITES]
        return [
            replace(each, ip=place.ip) for each in found if (":" in place.ip) == (each.af == IP6)
        ]

    def _look(self) -> bool:
        """See which networks these are; returns whether any is another than before."""
        places = [(each.interface, each.af, each.ip) for each in self._places()]
        changed = self._known.look(
            network_keys(self._node.place.nics, places), {(name, af): ip for name, af, ip in places}
        )
        for site in changed:
            self._keepers.drop(site)
        if changed:
            self._networks += 1
            self._last = None
        return bool(changed)

    # The listening sockets.

    def _keep(self) -> None:
        """Have one keeper for each listening socket that leads outside."""
        links: dict[Site, DatagramSocket] = {}
        for each in self._places():
            link = self._node.place.listeners.socket_at(each.af, each.ip)
            if link is not None:
                links[each.interface, each.af] = link
        self._keepers.keep(links)

    def _needed(self, site: Site, seen: Seen | None) -> bool:
        return needs_keeping(self._known.path(site), seen)

    def _heard(self, site: Site, moved: bool) -> None:
        """Take over how servers see a listening socket now."""
        works = self._keepers.answered().get(site, False)
        contradicted = self._known.contradicted(site, self._keepers.seen(site), udp_works=works)
        if self._apply() and moved:
            self._tell("external address")
        if moved or contradicted or (self._silent and works):
            self._wanted.set()

    # Changes.

    def _facts(self, nic: Interface, endpoint: Endpoint) -> Endpoint:
        site = nic.name, endpoint.af
        path, seen = self._known.path(site), self._keepers.seen(site)
        return with_facts(endpoint, path, seen, self._forwarded.get(site))

    def _apply(self) -> bool:
        """Sign the address anew if it says something else now; returns whether it does."""
        if self._closed or not self._node.place.describe(self._facts):
            return False
        self._node.sign_address()
        self._call_back()
        return True

    def _call_back(self) -> None:
        self._call(self._callbacks)

    def _arrived(self) -> None:
        self._call(self._arrivals)

    def _call(self, callbacks: Sequence[Callable[[], None]]) -> None:
        for callback in list(callbacks):
            try:
                callback()
            except Exception:
                self._node.stats.count("network_callbacks_failed")
                log.exception("a callback for changes of the network failed")

    def _tell(self, cause: str) -> None:
        place = self._node.place
        externals = [e.ext_ip for record in place.records for e in record.endpoints]
        event = NetworkChanged(
            cause,
            tuple(nic.name for nic in place.ifs),
            tuple(dict.fromkeys(ip for ip in externals if ip is not None)),
        )
        log.info("the network has changed (%s): interfaces %s, external addresses %s", cause,
                 ", ".join(event.interfaces), ", ".join(event.external) or "not known")  # fmt: skip
        self._node.notify(event)

    def _noticed(self, slept: bool) -> None:
        self._again = slept or bool(self._again)
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._spawn(self._refresh())

    async def _refresh(self) -> None:
        while self._again is not None:
            slept, self._again = self._again, None
            networks = self._networks
            try:
                changed = await self._node.place.refresh()
            except OSError as error:
                log.warning("the interfaces can't be read: %s", error)
                return
            if self._surveying is not None:
                self._look()
                self._keep()
            moved = networks != self._networks  # a survey may have looked first
            signed = self._apply()
            self._keepers.check(everything=changed or slept)
            if changed and not signed:
                self._call_back()
            if moved or slept or (changed and self._surveying is None):
                self._arrived()  # a container's address that comes and goes is no reason
                self._wanted.set()
            if changed or moved or slept:
                self._node.rendezvous.nudge(self._node.own_ips())
                self._tell("interfaces" if changed or moved else "woke up")
