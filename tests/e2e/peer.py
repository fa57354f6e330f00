"""A node in a process of its own, spoken to in lines of JSON.

``peer.py listen`` prints its address and echoes until its input ends. ``peer.py connect`` reads
one line: address, and optionally plugins, afs, route_types, timeout; it connects, checks the echo,
and prints what came of it. ``PEER_CONF`` may hold settings, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from warpgate import IP6, NODE_TEST_CONF, Node, auto_connect

CONF = {**NODE_TEST_CONF, **json.loads(os.environ.get("PEER_CONF", "{}"))}
TOKEN = b"there and back"


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


async def echo(msg: bytes, client_tup: tuple[str, int], pipe: Any) -> None:
    await pipe.send(msg, client_tup)


async def listen() -> None:
    async with Node(conf=CONF) as node:
        node.add_msg_cb(echo)
        say(address=node.peer_address.to_text(), node_id=node.node_id, port=node.port)
        await asyncio.to_thread(sys.stdin.read)


async def connect() -> None:
    wish = json.loads(await asyncio.to_thread(sys.stdin.readline))
    address, timeout_s = wish.pop("address"), wish.pop("timeout", 20)
    if wish.pop("ipv6", False):
        wish["afs"] = [IP6]
    async with Node(conf=CONF) as node:
        pipe, plugin = await auto_connect(node, address, timeout_s, **wish)
        report = node.last_report
        facts: dict[str, Any] = {"report": report.as_dict(), "text": str(report)}
        if pipe is not None:
            async with pipe:
                await pipe.send(TOKEN)
                facts["echoed"] = await pipe.recv_n(len(TOKEN), timeout=10) == TOKEN
            facts.update(plugin=plugin.name, remote=pipe.remote[0], peer=pipe.peer_id)
        say(connected=pipe is not None, **facts)


if __name__ == "__main__":
    asyncio.run({"listen": listen, "connect": connect}[sys.argv[1]]())
