"""How a change of the network is noticed."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
import threading
from itertools import pairwise

import pytest

from warpgate.net import monitor
from warpgate.net.monitor import CLOCK_S, DEBOUNCE_S, GAP_S, POLL_S, SLEPT_S, NetworkMonitor
from warpgate.testing import LeakCheck


def watch(seen, **arguments):
    loop = asyncio.get_running_loop()
    made = NetworkMonitor(lambda slept: seen.append((round(loop.time(), 3), slept)), **arguments)
    made.start()
    return made


def test_without_netlink_interfaces_are_compared(virtual, make_nic) -> None:
    now = [make_nic("eth0", 1, "10.0.0.1/24")]
    seen = []

    async def main():
        made = watch(seen, netlink=False, interfaces=lambda: list(now), wall=lambda: 0.0)
        await asyncio.sleep(POLL_S * 3.5)
        first = len(seen)
        now[:] = [make_nic("eth0", 1, "10.0.0.2/24")]
        await asyncio.sleep(POLL_S * 3)
        made.close()
        made.close()
        await asyncio.sleep(POLL_S * 3)
        return first

    assert virtual(main()) == 1  # what happened since the node read them
    assert [slept for _, slept in seen] == [False, False]
    assert seen[1][0] == pytest.approx(4 * POLL_S)


def test_interfaces_that_can_t_be_read_end_nothing(virtual) -> None:
    answers = iter([OSError("no"), [1], [1], [2]])
    seen = []

    def read():
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    async def main():
        made = watch(seen, netlink=False, interfaces=read, wall=lambda: 0.0)
        await asyncio.sleep(POLL_S * 4.5)
        made.close()

    virtual(main())
    assert len(seen) == 2


def test_a_clock_that_jumps_means_sleep(virtual) -> None:
    offset = [0.0]
    seen = []

    async def main():
        loop = asyncio.get_running_loop()
        made = watch(seen, netlink=False, interfaces=list, wall=lambda: loop.time() + offset[0])
        await asyncio.sleep(CLOCK_S * 2.5)
        offset[0] += SLEPT_S - 1  # somebody set the clock
        await asyncio.sleep(CLOCK_S)
        offset[0] -= 3600
        await asyncio.sleep(CLOCK_S)
        assert seen == []
        offset[0] += SLEPT_S + 1
        await asyncio.sleep(CLOCK_S)
        made.close()

    virtual(main())
    assert [slept for _, slept in seen] == [True]


class Netlink:
    """A netlink socket that says what a test wants."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def recv(self, size):
        if not self.answers:
            raise BlockingIOError
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def fileno(self):
        return -1

    def close(self):
        pass


def test_a_burst_of_messages_is_one_change_and_noise_is_thinned_out(virtual, monkeypatch) -> None:
    sock = Netlink()
    seen = []
    monkeypatch.setattr(NetworkMonitor, "_open", lambda self: sock)

    async def main():
        made = watch(seen, wall=lambda: 0.0)
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "remove_reader", lambda number: None)
        for _ in range(30):  # 3 s of noise
            sock.answers = [b"message", OSError(105, "ENOBUFS"), b"message"]
            made._readable()
            assert not sock.answers
            await asyncio.sleep(0.1)
        await asyncio.sleep(5)
        made.close()

    virtual(main())
    assert seen[0] == (DEBOUNCE_S, False)
    gaps = [after[0] - before[0] for before, after in pairwise(seen)]
    assert gaps == pytest.approx([GAP_S] * len(gaps), abs=0.11)
    assert len(seen) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")
async def test_a_sandbox_without_netlink_falls_back(monkeypatch) -> None:
    def refuse(*_):
        raise PermissionError("no")

    monkeypatch.setattr(monitor.socket, "socket", refuse)
    made = NetworkMonitor(lambda _: None)
    made.start()
    assert "poll" in made._timers
    made.close()


@pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")
async def test_it_leaves_nothing() -> None:
    async with LeakCheck():
        made = NetworkMonitor(lambda _: None)
        made.start()
        assert made._sock is not None
        assert "poll" not in made._timers
        made.close()


CLONE_NEWNET = 0x40000000


@pytest.mark.netns
@pytest.mark.skipif(sys.platform != "linux" or os.getuid(), reason="needs root on Linux")
def test_linux_tells_of_addresses_and_links_that_come_and_go() -> None:
    seen = []
    errors = []

    async def main():
        said = asyncio.Event()

        def note(slept):
            seen.append(slept)
            said.set()

        made = NetworkMonitor(note)
        made.start()
        for words in ("link set lo up", "addr add 10.1.1.1/24 dev lo", "addr add fd00::1/64 dev lo",
                      "link set lo down"):  # fmt: skip
            said.clear()
            subprocess.run(["ip", *words.split()], check=True)  # noqa: ASYNC221  # in this namespace
            async with asyncio.timeout(5):
                await said.wait()
        made.close()

    def body():
        try:
            assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001  # told by the thread that waits
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(30)
    assert errors == []
    assert seen == [False] * 4
