from __future__ import annotations

import asyncio

import pytest

from warpgate.net.driver import Driver


class Machine:
    """Answers what it hears, rings every second it is told to, and tells what happens."""

    def __init__(self) -> None:
        self.out: list[bytes] = []
        self.events: list[str] = []
        self.due: float | None = None
        self.calls: list[tuple[str, float]] = []

    def start(self, now: float) -> None:
        self.calls.append(("start", now))
        self.out.append(b"hello")

    def receive(self, data: bytes, addr: tuple[str, int], now: float) -> None:
        self.calls.append(("receive", now))
        if data == b"bad":
            raise ValueError("bad")
        if data.startswith(b"ring"):
            self.due = now + float(data[4:])
        self.out.append(b"re " + data)
        self.events.append(f"{data.decode()} from {addr[0]}")

    def outgoing(self, now: float) -> list[bytes]:
        out, self.out = self.out, []
        return out

    def next_timeout(self) -> float | None:
        return self.due

    def handle_timeout(self, now: float) -> None:
        assert self.due is not None
        assert now >= self.due - 0.001
        self.due = None
        self.events.append("rang")

    def next_event(self) -> str | None:
        return self.events.pop(0) if self.events else None


async def test_what_goes_in_comes_out_in_order() -> None:
    log: list[object] = []
    driver = Driver(Machine(), log.append, log.append)
    driver.start()
    driver.feed(b"a", ("192.0.2.1", 5))
    driver.call(lambda now: driver.machine.out.append(b"extra"))  # type: ignore[attr-defined]
    assert log == [b"hello", b"re a", "a from 192.0.2.1", b"extra"]


async def test_the_timer() -> None:
    rang = asyncio.Event()

    def on_event(event: str) -> None:
        if event == "rang":
            rang.set()

    machine = Machine()
    driver = Driver(machine, lambda data: None, on_event)
    driver.feed(b"ring 100")
    driver.feed(b"ring 0.01")  # an earlier time replaces the later one
    async with asyncio.timeout(5):
        await rang.wait()
    assert machine.due is None
    assert driver._timer is None


async def test_nothing_happens_after_close() -> None:
    log: list[object] = []
    machine = Machine()
    driver = Driver(machine, log.append, log.append)
    driver.feed(b"ring 0.01")
    log.clear()
    driver.close()
    driver.close()
    driver.feed(b"x")
    driver.start()
    await asyncio.sleep(0.03)
    assert not log
    assert machine.due is not None


async def test_close_and_feed_from_an_event() -> None:
    log: list[object] = []
    driver: Driver

    def on_event(event: str) -> None:
        log.append(event)
        if event.startswith("a"):
            driver.feed(b"b", ("x", 1))
        if event.startswith("b"):
            driver.close()

    driver = Driver(Machine(), log.append, on_event)
    driver.machine.events[:] = ["a", "b from x", "never"]  # type: ignore[attr-defined]
    driver.start()
    assert log == [b"hello", "a", b"re b", "b from x"]


async def test_errors_surface_and_end_it() -> None:
    driver = Driver(Machine(), lambda data: None, lambda event: None)
    with pytest.raises(ValueError, match="bad"):
        driver.feed(b"bad")
    assert driver.closed

    def failing(event: str) -> None:
        raise KeyError(event)

    driver = Driver(Machine(), lambda data: None, failing)
    with pytest.raises(KeyError):
        driver.feed(b"x")
    assert driver.closed


async def test_errors_of_the_timer() -> None:
    caught: asyncio.Queue[Exception] = asyncio.Queue()

    def on_event(event: str) -> None:
        if event == "rang":
            raise KeyError(event)

    driver = Driver(Machine(), lambda data: None, on_event, on_error=caught.put_nowait)
    driver.feed(b"ring 0")
    async with asyncio.timeout(5):
        assert isinstance(await caught.get(), KeyError)
    assert driver.closed

    loop = asyncio.get_running_loop()
    contexts: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    loop.set_exception_handler(lambda loop, context: contexts.put_nowait(context))
    driver = Driver(Machine(), lambda data: None, on_event)
    driver.feed(b"ring 0")
    async with asyncio.timeout(5):
        assert isinstance((await contexts.get())["exception"], KeyError)


async def test_the_clock_can_be_given() -> None:
    machine = Machine()
    driver = Driver(machine, lambda data: None, lambda event: None, now=lambda: 42.0)
    driver.start()
    assert machine.calls == [("start", 42.0)]
    driver.close()
