"""Ending tasks."""

from __future__ import annotations

import asyncio
from typing import Any


async def settle(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
