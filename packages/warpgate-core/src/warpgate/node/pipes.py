"""The pipes that are closed with a node."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warpgate.events import Counters
    from warpgate.net.pipe import Pipe


class OpenPipes:
    """Pipes that belong to a node's user, who may leave closing them to the node."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._pipes: set[Pipe] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._pipes)

    def add(self, pipe: Pipe) -> bool:
        """Close a pipe with the node, if nobody has before; False when the node is closed already."""
        if self._closed:
            pipe.abort()
            return False
        self._pipes.add(pipe)
        pipe.add_close_callback(self._pipes.discard)
        return True

    async def close(self, timeout_s: float) -> None:
        """Close all, gracefully for ``timeout_s`` seconds; those that take longer are aborted."""
        self._closed = True
        loop = asyncio.get_running_loop()
        closing = {loop.create_task(pipe.close()): pipe for pipe in self._pipes}
        if not closing:
            return
        _, late = await asyncio.wait(closing, timeout=timeout_s)
        if late:
            self._counters.count("pipes_aborted", len(late))
            for task in late:
                closing[task].abort()
            await asyncio.wait(late)
