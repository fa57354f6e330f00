"""The future that a strategy resolves; the manager's, so that handing over a pipe is not yet success."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol


class ResultOwner(Protocol):
    """Who is told what a strategy does with its future."""

    def offered(self, value: Any) -> None:
        """Take what ``set_result`` was called with."""

    def failed(self, cause: BaseException) -> None:
        """Take what ``set_exception`` was called with."""

    def cancelled(self) -> None:
        """Take note that somebody cancelled the future."""


class ResultFuture(asyncio.Future[Any]):
    """A future whose ``set_result`` hands a pipe over for proof and resolves when it is proven.

    ``set_result(None)`` means failure; ``set_exception`` is recorded and resolves to None;
    ``cancel`` cancels the attempt. Setting it late is no error: a late pipe is closed.
    """

    def __init__(self, owner: ResultOwner, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._owner = owner

    def set_result(self, result: Any) -> None:
        """Hand over a pipe, or None for failure."""
        self._owner.offered(result)

    def set_exception(self, exception: type | BaseException, /) -> None:
        """Fail with a cause, which the attempt's outcome will show."""
        if isinstance(exception, type):
            exception = exception()
        assert isinstance(exception, BaseException)
        self._owner.failed(exception)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the attempt behind this future."""
        was_pending = super().cancel(msg)
        if was_pending:
            self._owner.cancelled()
        return was_pending

    def resolve(self, value: Any) -> None:
        """Resolve for good; the owner's alone."""
        if not self.done():
            super().set_result(value)
