"""One real warpgate node in a process of its own: ``python -m warpgate_natlab.peer``.

It reads JSON objects from standard input, one a line, and answers likewise. The first one is
``{"conf": {…}, "warm": true}``, settings over ``NODE_CONF``; when the node has started (warm: and knows
its NATs) it tells its address. Then:

===================  ===============================================================================
``{"do": …}``        answer
===================  ===============================================================================
``address``          ``{"address": text, …}``, as at the start
``connect``          takes ``address``, ``timeout`` (s), ``options`` of ``auto_connect`` and ``forget``:
                     what worked last time does not count;
                     ``{"ok", "strategy", "path", "transport", "connect_s", "ping_s", "report", "error"}``;
                     ``ping_s`` is from the call to the answer of a first 64-byte message, ``cpu_s``
                     what the call cost this process
``stop``             closes the node and ends
===================  ===============================================================================

Whatever arrives on an inbound pipe is sent back.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from warpgate import Node
from warpgate.node.auto_connect import auto_connect
from warpgate.node.node_defs import NODE_CONF

if TYPE_CHECKING:
    from warpgate.net.pipe import Pipe

BROKERS_S: Final = 3.0
"""How long to wait for a first broker, when some are configured."""
REPORT_S: Final = 4.0
"""How long to wait for the NAT report."""
MAPPING_S: Final = 4.0
"""How long to wait for the router."""
PING_BYTES: Final = 64
PING_S: Final = 5.0
PING_AGAIN_S: Final = 0.25
MAX_LINE: Final = 1 << 20


def say(message: dict[str, Any]) -> None:
    """Answer."""
    print(json.dumps(message, default=str), flush=True)


async def echo(msg: bytes, client: tuple[str, int], pipe: Pipe) -> None:
    """Send back what came."""
    await pipe.send(msg)


async def ping(pipe: Pipe) -> bool:
    """Tell whether the other end answers; over UDP the question is repeated."""
    token = os.urandom(PING_BYTES)
    deadline = time.monotonic() + PING_S
    seen = b""
    await pipe.send(token)
    while (left := deadline - time.monotonic()) > 0:
        answer = await pipe.recv(timeout=min(PING_AGAIN_S, left))
        if answer is not None:
            # A stream may cut it.
            seen = answer if pipe.transport == "udp" else seen + answer
            if token in seen:
                return True
        elif pipe.closed:
            return False
        elif pipe.transport == "udp":
            await pipe.send(token)
    return False


async def connect(node: Node, request: dict[str, Any]) -> dict[str, Any]:
    """Connect, ping, close; return what happened."""
    if request.get("forget"):
        node.traversal.history.forget_what_worked()
    started, cpu = time.perf_counter(), time.process_time()
    answer: dict[str, Any] = {"ok": False, "strategy": None, "path": None, "transport": None}
    try:
        pipe, plugin = await auto_connect(
            node, request["address"], timeout=request["timeout"], **request.get("options", {})
        )
        answer["connect_s"] = time.perf_counter() - started
        answer["cpu_s"] = time.process_time() - cpu
        if pipe is not None and plugin is not None:
            answer.update(strategy=plugin.name, path=pipe.path, transport=pipe.transport)
            answer.update(peer_id=pipe.peer_id, sealed=pipe.sealed)
            answer["ok"] = await ping(pipe)
            answer["ping_s"] = time.perf_counter() - started
            if not answer["ok"]:
                answer["error"] = f"a pipe by {plugin.name} came up, and nothing was answered on it"
            await pipe.close()
    except Exception as error:  # noqa: BLE001  # whatever it is, it belongs into the report
        answer["error"] = f"{type(error).__name__}: {error}"
    report = node.last_report
    if report is not None:
        answer["report"] = report.as_dict()
        if report.error is not None:
            answer.setdefault("error", str(report.error))
    return answer


async def broker(node: Node) -> None:
    """Wait for a first broker, so that the address names it."""
    deadline = time.monotonic() + BROKERS_S
    while not node.peer_address.brokers and time.monotonic() < deadline:  # noqa: ASYNC110  # no event tells of it
        await asyncio.sleep(0.01)


async def mapping(node: Node) -> None:
    """Wait for the router's mapping of the listening port, where it grants one."""
    mapper = getattr(
        node, "port_mapping", None
    )  # there is none without the strategy's distribution
    deadline = time.monotonic() + MAPPING_S
    while mapper is not None and not mapper.status.mapped and time.monotonic() < deadline:  # noqa: ASYNC110  # no event
        await asyncio.sleep(0.02)


def describe(node: Node, seconds: float) -> dict[str, Any]:
    """Return what the other side must know, and what people want to."""
    return {
        "address": node.peer_address.to_text(),
        "node_id": node.node_id,
        "brokers": list(node.peer_address.brokers),
        "strategies": sorted(node.traversal.plugin_loaders),
        "rejected": [str(failure) for failure in node.traversal.rejected],
        "start_s": seconds,
        "stats": dict(node.stats),
        "cpu_s": time.process_time(),
    }


async def main() -> int:
    """Be the node until told to stop, or until standard input ends."""
    reader = asyncio.StreamReader(limit=MAX_LINE)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    first = json.loads(await reader.readline())
    started = time.perf_counter()
    conf = {**NODE_CONF, "install_path": ":memory:", **first.get("conf", {})}
    async with Node(conf=conf) as node:
        node.add_msg_cb(echo)
        if conf["sig_pipe_no"] and os.environ.get("WARPGATE_BROKERS"):
            await broker(node)
        if first.get("warm", True) and conf["enable_stun_clients"]:
            await node.network.ready(REPORT_S)
        if first.get("warm", True) and conf["enable_upnp"]:
            await mapping(node)
        say(describe(node, time.perf_counter() - started))
        while line := await reader.readline():
            request = json.loads(line)
            if request["do"] == "stop":
                break
            if request["do"] == "connect":
                say(await connect(node, request))
            else:
                say(describe(node, time.perf_counter() - started))
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
