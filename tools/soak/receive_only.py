"""Receives through relays for an hour, sends nothing, and counts what gets lost.

Run ``python tools/soak/receive_only.py [--seconds 3600]``. Three pipes at once go through one coturn
on loopback. The receiver of each has the relay, which it reaches over UDP, TCP or TLS, and sends no
data: only timers keep its allocation (600 s), its permission (300 s) and its channel (600 s), with
coturn's own lifetimes. The sender has no server and sends a numbered message every 50 ms straight to
the relay. In the end the receiver speaks for the first time, which shows that its channel still lives.

Prints a line a minute and a summary, with what coturn says that was renewed. ``--lifetimes 4,2,4``
shortens those of allocations, permissions and channels, in seconds. Exits with 1 when a message is lost,
a pipe has ended or the receiver's word does not arrive; with 77 where coturn or trustme is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import re
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from warpgate import NODE_TEST_CONF, Node, Pipe, TraversalError, WarpgateError, connect
from warpgate.testing import Stage
from warpgate.testing.coturn import Coturn, find_coturn, make_certificates
from warpgate_plugin_turn.strategy import Turn

TRANSPORTS: Final = ("udp", "tcp", "tls")
EVERY_S: Final = 0.05
LATE_S: Final = 1.0
GRACE_S: Final = 5.0
"""What has not come by then is lost."""
MINUTE_S: Final = 60.0
SKIPPED: Final = 77
NUMBER: Final = struct.Struct("!Q")
PADDING: Final = bytes(92)
DONE: Final = re.compile(r"session (\d+): .* incoming packet (\w+) processed, success")
RENEWED_BY: Final = {
    "allocations": "REFRESH",
    "permissions": "CREATE_PERMISSION",
    "channels": "CHANNEL_BIND",
}


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long coturn keeps what is not renewed, in seconds."""

    allocation: int
    permission: int
    channel: int

    def lines(self) -> list[str]:
        """Return coturn's configuration."""
        return [
            f"max-allocate-lifetime={self.allocation}",
            f"permission-lifetime={self.permission}",
            f"channel-lifetime={self.channel}",
            f"stale-nonce={self.allocation}",
        ]

    def settings(self) -> dict[str, float]:
        """Return the strategy's settings; an allocation's lifetime is the server's word."""
        return {"permission_lifetime_s": self.permission, "channel_lifetime_s": self.channel}


@dataclass(slots=True)
class Tally:
    """What has become of the messages through one relay.

    Attributes:
        transport: how the receiver reaches its relay.
        sent, received: so many messages; a second copy does not count as received.
        late: came after more than ``LATE_S``.
        duplicated, disordered: came again; came after one that had been sent later.
        slowest_s: the longest time that a message took.
        answered: the receiver's word at the end has reached the sender.
        ended: why a pipe ended early.
        settled: set while nothing is under way.

    """

    transport: str
    sent: int = 0
    received: int = 0
    late: int = 0
    duplicated: int = 0
    disordered: int = 0
    slowest_s: float = 0.0
    answered: bool = False
    ended: str = ""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    _under_way: dict[int, float] = field(default_factory=dict)
    _highest: int = -1

    def next(self, now: float) -> bytes:
        """Return the next message."""
        number, self.sent = self.sent, self.sent + 1
        self._under_way[number] = now
        self.settled.clear()
        return NUMBER.pack(number) + PADDING

    def take(self, message: bytes, now: float) -> None:
        """Count a message that has come."""
        (number,) = NUMBER.unpack_from(message)
        sent_at = self._under_way.pop(number, None)
        if sent_at is None:
            self.duplicated += 1
            return
        self.received += 1
        self.late += now - sent_at > LATE_S
        self.disordered += number < self._highest
        self.slowest_s = max(self.slowest_s, now - sent_at)
        self._highest = max(number, self._highest)
        if not self._under_way:
            self.settled.set()

    def lost(self, now: float) -> int:
        """Return how many have not come within ``GRACE_S``."""
        return sum(now - sent_at > GRACE_S for sent_at in self._under_way.values())

    @property
    def under_way(self) -> int:
        """How many have not come yet; in the end these are lost."""
        return len(self._under_way)

    @property
    def sound(self) -> bool:
        """Whether, in the end, everything has come."""
        return self.sent > 0 and not (self._under_way or self.ended) and self.answered

    def line(self, lost: int) -> str:
        """Return the figures."""
        text = (
            f"{self.transport}: {self.received} of {self.sent}, {lost} lost, {self.late} late, "
            f"{self.duplicated} duplicated, {self.disordered} out of order"
        )
        return text + (f", ended: {self.ended}" if self.ended else "")


@asynccontextmanager
async def relayed(
    url: str, ca_file: Path, settings: dict[str, Any]
) -> AsyncIterator[tuple[Pipe, Pipe]]:
    """Connect two nodes, only the first of which has a relay; gives its pipe and the other's."""
    async with AsyncExitStack() as stack:
        nodes = []
        for servers in ([url], []):
            turn = {"ca_file": str(ca_file), **settings}
            conf = {**NODE_TEST_CONF, "turn_servers": servers, "plugin_conf": {"turn": turn}}
            nodes.append(await stack.enter_async_context(Node(ip="127.0.0.1", conf=conf)))
        receiver, sender = nodes
        pipe = await connect(receiver, sender.address(), plugins=["turn"])
        inbound = await sender.accept()
        pools = [node.traversal.plugin_loaders["turn"].factory.pool for node in nodes]
        if pipe.path != "relay" or [pool.live for pool in pools] != [1, 0]:
            raise TraversalError(f"not over the receiver's relay: {pipe}")
        yield pipe, inbound


async def receive(
    tally: Tally, url: str, ca_file: Path, settings: dict[str, Any], seconds: float
) -> None:
    """Send through the receiver's relay for so long, and let the receiver speak in the end."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    try:
        async with relayed(url, ca_file, settings) as (pipe, sender):
            pipe.subscribe(handler=lambda message, _from, _pipe: tally.take(message, loop.time()))
            begin = loop.time()
            while (elapsed := loop.time() - begin) < seconds:
                await sender.send(tally.next(loop.time()))
                await asyncio.sleep(EVERY_S - elapsed % EVERY_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S):
                    await tally.settled.wait()
            await pipe.send(b"done")
            tally.answered = await sender.recv(timeout=GRACE_S) == b"done"
    except WarpgateError as error:
        tally.ended = f"after {loop.time() - begin:.1f} s: {error.__cause__ or error}"


async def minutes(tallies: Sequence[Tally], show: Callable[[str], None]) -> None:
    """Show the figures every minute."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    while True:
        await asyncio.sleep(MINUTE_S)
        now = loop.time()
        figures = "; ".join(tally.line(tally.lost(now)) for tally in tallies)
        show(f"{(now - begin) / MINUTE_S:3.0f} min  {figures}")


async def soak(
    server: Coturn,
    ca_file: Path,
    seconds: float,
    *,
    lifetimes: Lifetimes | None = None,
    show: Callable[[str], None] = print,
) -> list[Tally]:
    """Receive over all transports at once.

    Args:
        server: coturn, with ``Lifetimes.lines()`` where these are given.
        ca_file: the authority of its certificate.
        seconds: for so long.
        lifetimes: the server's; its own by default.
        show: takes a line a minute.

    Returns:
        The tally of each transport.

    """
    tallies = [Tally(transport) for transport in TRANSPORTS]
    settings = {} if lifetimes is None else lifetimes.settings()
    with Stage(memory=True) as stage:
        stage.install(Turn)
        watch = asyncio.create_task(minutes(tallies, show))
        try:
            async with asyncio.TaskGroup() as group:
                for tally in tallies:
                    url = server.url(tally.transport)
                    group.create_task(receive(tally, url, ca_file, settings, seconds))
        finally:
            watch.cancel()
            await asyncio.wait([watch])
    return tallies


@contextmanager
def scene(lifetimes: Lifetimes | None) -> Iterator[tuple[Coturn, Path]]:
    """Start coturn; gives it and the file of its certificate's authority."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ca_file, *certificate = make_certificates(folder)
        lines = ["verbose", *(lifetimes.lines() if lifetimes else [])]
        with Coturn(folder, lines, certificate=(certificate[0], certificate[1])) as server:
            yield server, ca_file


def renewals(log: str) -> dict[str, list[int]]:
    """Return what coturn says that was renewed, and how often for each relay.

    Nothing lost is not all that can be said: coturn lets a channel's renewal pass for the
    permission's, and delivers without a channel what it would deliver with one.

    Args:
        log: coturn's, with ``verbose`` among its lines.

    """
    asked: dict[str, list[str]] = {}
    for session, method in DONE.findall(log):
        asked.setdefault(session, []).append(method)
    relays = [methods for methods in asked.values() if "ALLOCATE" in methods]
    # The first permission and the first channel are new; the last refresh is the farewell.
    return {
        kind: [methods.count(method) - 1 for methods in relays]
        for kind, method in RENEWED_BY.items()
    }


def _lifetimes(text: str) -> Lifetimes:
    try:
        allocation, permission, channel = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected three numbers: 4,2,4") from None
    return Lifetimes(allocation, permission, channel)


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600.0, help="for so long (3600)")
    parser.add_argument(
        "--lifetimes", type=_lifetimes, metavar="A,P,C",
        help="seconds that coturn keeps allocations, permissions and channels (its own)",
    )  # fmt: skip
    options = parser.parse_args()
    if find_coturn() is None or importlib.util.find_spec("trustme") is None:
        print("needs coturn and trustme")
        return SKIPPED
    started = time.monotonic()
    with scene(options.lifetimes) as (server, ca_file):
        tallies = asyncio.run(
            soak(
                server, ca_file, options.seconds, lifetimes=options.lifetimes,
                show=lambda line: print(line, flush=True),
            )
        )  # fmt: skip
        log = server.log()
    print(f"after {time.monotonic() - started:.0f} s; coturn's renewals, of each relay:")
    for kind, counts in renewals(log).items():
        print(f"  {kind}: {', '.join(map(str, counts))}")
    for tally in tallies:
        word = "answered in the end" if tally.answered else "the receiver's word did not arrive"
        print(f"{tally.line(tally.under_way)}, slowest {tally.slowest_s * 1000:.0f} ms, {word}")
    return 0 if all(tally.sound for tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
