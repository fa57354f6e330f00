"""The test case of the public documents, on the standard library's."""

from __future__ import annotations

import unittest
from typing import ClassVar

from warpgate.testing.leaks import GRACE_S, LeakCheck


class AsyncTestCase(unittest.IsolatedAsyncioTestCase):
    """A :class:`unittest.TestCase` whose test methods may be coroutines, each in a loop of its own.

    It behaves as ``aionetiface.testing.AsyncTestCase``, and changes nothing outside itself.

    Attributes:
        check_leaks: set it to True, and a test that leaves a task, socket or file descriptor
            behind fails. It looks after ``asyncTearDown`` and the cleanups that a test has added.
            A subclass with an ``asyncSetUp`` of its own calls ``await super().asyncSetUp()``.

    """

    check_leaks: ClassVar[bool] = False

    async def asyncSetUp(self) -> None:
        """Note what is there before the test."""
        await super().asyncSetUp()
        if self.check_leaks:
            check = LeakCheck()
            check.begin()
            self.addAsyncCleanup(check.check)

    def assertNoLeaks(self, grace_s: float = GRACE_S) -> LeakCheck:  # noqa: N802  # as unittest's
        """Return a context for ``async with``: what its block leaves behind fails the test.

        Args:
            grace_s: seconds in which what was left may still go away by itself.

        """
        return LeakCheck(grace_s)
