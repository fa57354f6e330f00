"""What ``warpgate listen`` and ``warpgate connect`` share: a node, and a pipe's two directions."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from warpgate.cli.standard_streams import CHUNK, Input, Output

if TYPE_CHECKING:
    from warpgate.net.pipe import Pipe
    from warpgate.node.node import Node

GRACE_S: Final = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that both commands have."""
    parser.add_argument(
        "--broker",
        action="append",
        metavar="URL",
        help="meet at this broker instead of WARPGATE_BROKERS; may be repeated",
    )
    parser.add_argument(
        "--grace",
        type=seconds,
        default=GRACE_S,
        metavar="S",
        help=(
            "after the end of standard input, close once the peer has been silent for so long "
            "(default %(default)s s)"
        ),
    )
    parser.add_argument(
        "--install-path",
        metavar="DIR",
        help='where the key file is (default: the platform\'s; ":memory:" for a passing identity)',
    )


def seconds(text: str) -> float:
    """Return a number of seconds above 0; for argparse.

    Raises:
        ValueError: it is none.

    """
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


@contextlib.asynccontextmanager
async def running_node(
    args: argparse.Namespace, port: int | None = None, ip: str | None = None
) -> AsyncIterator[Node]:
    """Run a node with the settings of the command line.

    Raises:
        WarpgateError: it can't be started; the text says why.

    """
    from warpgate.errors import WarpgateError
    from warpgate.node.node import Node

    # Plain clients, port scanners among them, are no peers: nobody knows who they are.
    conf: dict[str, Any] = {"accept_plain": False}
    if args.broker:
        conf["brokers"] = args.broker
    if args.install_path is not None:
        conf["install_path"] = args.install_path
    node = Node(ip=ip, port=port, conf=conf)
    try:
        try:
            await node.start()
        except WarpgateError:
            raise
        except OSError as error:
            raise WarpgateError(f"no address could be listened on: {error}") from error
        yield node
    finally:
        await node.close()


class Copy:
    """Standard input to a pipe and the pipe to standard output.

    Args:
        pipe: what to copy to and from; it is closed in the end.
        grace_s: seconds of silence after the end of standard input.

    """

    def __init__(self, pipe: Pipe, grace_s: float) -> None:
        self._pipe = pipe
        self._grace_s = grace_s
        self._loop = asyncio.get_running_loop()
        self._heard = 0.0  # when the peer's last bytes were on standard output
        self._writing = False
        self._sent = 0
        self._unsent = False  # bytes were read that the pipe has not taken yet
        self._refused = False

    async def run(self, stdin: Input, stdout: Output) -> str | None:
        """Copy until either side ends.

        That is when the peer has closed and everything it sent is on standard output; or when
        standard input has ended, everything in it was sent, and the peer has been silent for the
        grace. An input without a byte (``</dev/null``) means to receive only: then the peer ends it.

        Returns:
            None; or what kept bytes from arriving.

        Raises:
            OSError: standard input or output failed.

        """
        sending = self._loop.create_task(self._send(stdin))
        receiving = self._loop.create_task(self._receive(stdout))
        try:
            await asyncio.wait([sending, receiving], return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
                await self._until_silence(receiving)
            if receiving.done():
                receiving.result()
                return await self._why_broken()
        finally:
            for task in (sending, receiving):
                task.cancel()
            await asyncio.wait([sending, receiving])
            await self._pipe.close()
        return None

    async def _send(self, stdin: Input) -> None:
        from warpgate.errors import PipeClosed

        # A datagram has a largest size; of a stream any part is as good as another.
        size = min(self._pipe.max_message or CHUNK, CHUNK)
        while data := await stdin.read():
            self._unsent = True
            try:
                for start in range(0, len(data), size):
                    self._sent += await self._pipe.send(data[start : start + size])
            except PipeClosed:
                self._refused = True
                return
            self._unsent = False

    async def _receive(self, stdout: Output) -> None:
        from warpgate.errors import PipeClosed

        with contextlib.suppress(PipeClosed):  # _why_broken tells
            async for data in self._pipe:
                self._writing = True
                await stdout.write(data)
                self._writing = False
                self._heard = self._loop.time()

    async def _until_silence(self, receiving: asyncio.Task[None]) -> None:
        """Wait for the peer's end; after an input that had something in it, for silence at most."""
        if self._refused or not self._sent:
            await asyncio.wait([receiving])
            return
        ended = self._loop.time()
        while not receiving.done():
            left = max(self._heard, ended) + self._grace_s - self._loop.time()
            if self._writing:  # whoever reads our output is slow; that is no silence of the peer's
                left = self._grace_s
            if left <= 0:
                return
            await asyncio.wait([receiving], timeout=left)

    async def _why_broken(self) -> str | None:
        from warpgate.errors import PipeClosed

        if self._unsent:
            return "the peer closed before everything was sent"
        if self._pipe.closed:
            try:
                await self._pipe.send(b"")
            except PipeClosed as error:
                if error.__cause__ is not None:
                    return f"the connection broke: {error.__cause__}"
        return None


def say(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)
