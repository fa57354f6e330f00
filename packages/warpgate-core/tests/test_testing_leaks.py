from __future__ import annotations

import asyncio
import os
import socket
import unittest
from typing import ClassVar

import pytest

from warpgate.testing import AsyncTestCase, LeakCheck, open_descriptors


async def test_nothing_left_passes() -> None:
    async with LeakCheck():
        task = asyncio.create_task(asyncio.sleep(0))
        sock = socket.socket()
        sock.close()
        await task


async def test_a_task_that_is_left_is_named() -> None:
    task = None
    with pytest.raises(AssertionError, match=r"task 'planted': Event\.wait"):
        async with LeakCheck(grace_s=0.02):
            task = asyncio.create_task(asyncio.Event().wait(), name="planted")
    assert task is not None
    task.cancel()


async def test_a_socket_that_is_left_is_described() -> None:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    try:
        with pytest.raises(AssertionError) as caught:  # noqa: PT012
            async with LeakCheck(grace_s=0.02):
                planted = socket.socket(type=socket.SOCK_DGRAM)
                planted.bind(("127.0.0.1", 0))
        assert str(planted.getsockname()) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 2  # the one that was there is not named
        planted.close()
    finally:
        sock.close()


@pytest.mark.skipif(os.name == "nt", reason="only sockets are listed on Windows")
async def test_a_file_that_is_left_is_described() -> None:
    with pytest.raises(AssertionError, match=r"descriptor \d+"):
        async with LeakCheck(grace_s=0.02):
            ends = os.pipe()
    for number in ends:
        os.close(number)


async def test_what_goes_away_by_itself_is_no_leak() -> None:
    async with LeakCheck(grace_s=5):
        task = asyncio.create_task(asyncio.Event().wait())
        asyncio.get_running_loop().call_later(0.02, task.cancel)


async def test_a_failing_block_is_not_overshadowed() -> None:
    task = None
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with LeakCheck(grace_s=0.02):
            task = asyncio.create_task(asyncio.Event().wait())
            _ = 1 / 0
    assert task is not None
    task.cancel()


async def test_a_number_that_is_used_again_counts_as_new() -> None:
    one, two = socket.socketpair()
    before = open_descriptors()
    number = one.fileno()
    one.close()
    again, third = socket.socketpair()
    try:
        assert number in (again.fileno(), third.fileno())
        assert len(open_descriptors().keys() - before.keys()) == 2
    finally:
        for sock in (two, again, third):
            sock.close()


class Samples:
    """Keeps pytest from collecting what is to fail."""

    class Sample(AsyncTestCase):
        check_leaks = True
        planted: ClassVar[list[socket.socket]] = []

        async def test_leaks(self) -> None:
            self.planted.append(socket.socket())

        async def test_clean(self) -> None:
            async with self.assertNoLeaks():
                await asyncio.sleep(0)

        async def test_closes_in_a_cleanup(self) -> None:
            sock = socket.socket()
            self.addCleanup(sock.close)

    class Careless(Sample):
        check_leaks = False


def run(case: unittest.TestCase) -> unittest.TestResult:
    result = unittest.TestResult()
    case.run(result)
    return result


def test_the_test_case_finds_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    original = LeakCheck.check

    async def impatient(self: LeakCheck) -> None:
        self.grace_s = 0.02
        await original(self)

    monkeypatch.setattr(LeakCheck, "check", impatient)
    result = run(Samples.Sample("test_leaks"))
    Samples.Sample.planted.pop().close()
    assert len(result.failures) == 1
    assert "left behind" in result.failures[0][1]


@pytest.mark.parametrize("name", ["test_clean", "test_closes_in_a_cleanup"])
def test_the_test_case_passes_what_is_clean(name: str) -> None:
    assert run(Samples.Sample(name)).wasSuccessful()


def test_the_test_case_looks_only_when_asked() -> None:
    assert run(Samples.Careless("test_leaks")).wasSuccessful()
    Samples.Sample.planted.pop().close()
