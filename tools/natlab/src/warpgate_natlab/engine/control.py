"""The control socket: JSON lines over a Unix stream socket."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from warpgate_natlab.engine.loop import Loop
from warpgate_natlab.engine.middlebox import Middlebox
from warpgate_natlab.engine.nat import Firewall, Translator
from warpgate_natlab.engine.packet import TCP, UDP, addr_bytes
from warpgate_natlab.engine.policy import ConfigError, Forward, check_keys, one_of
from warpgate_natlab.engine.router import Router

__all__ = ["Commands", "ControlServer", "Pcap"]

_LINE_MAX = 1 << 20
_LINKTYPE_RAW = 101


class Pcap:
    """A capture file (libpcap's format, raw IP). Flushed when closed."""

    def __init__(self, path: str) -> None:
        self.packets = 0
        self._file: BinaryIO = Path(path).open("wb")  # noqa: SIM115 - closed by close()
        self._epoch = time.time() - time.monotonic()
        head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, _LINKTYPE_RAW)
        self._file.write(head)

    def __call__(self, now: float, data: bytearray) -> None:
        """Write one packet that passed at ``now`` (monotonic)."""
        self.packets += 1
        at = self._epoch + now
        head = struct.pack("<IIII", int(at), int(at % 1 * 1e6), len(data), len(data))
        self._file.write(head + data)

    def close(self) -> None:
        """Write out and close."""
        self._file.close()


class Commands:
    """What the ops do.

    Args:
        loop: of the engine; None in tests without devices.
        graph: the network.
        clock: monotonic seconds.
    """

    def __init__(self, loop: Loop, clock: Callable[[], float] = time.monotonic) -> None:
        self.loop = loop
        self.graph = loop.graph
        self.clock = clock
        self._started = clock()

    def call(self, request: Mapping[str, Any]) -> Any:
        """Carry one request out. Raises ConfigError, OSError, or what a wrong type leads to."""
        arguments = {k: v for k, v in request.items() if k not in ("id", "op")}
        handler = getattr(self, f"op_{request.get('op')}", None)
        if handler is None:
            known = sorted(name[3:] for name in dir(self) if name.startswith("op_"))
            raise ConfigError(f"unknown op {request.get('op')!r}; known: {', '.join(known)}")
        try:
            return handler(**arguments)
        except TypeError as error:
            raise ConfigError(str(error)) from error

    def op_ping(self) -> dict[str, Any]:
        """Who and since when."""
        now = self.clock()
        return {
            "pid": os.getpid(),
            "now": now,
            "uptime_s": now - self._started,
            "late_max_ms": self.loop.late_max_s * 1000,
        }

    def op_describe(self) -> dict[str, Any]:
        """The configuration."""
        return self.graph.describe()

    def op_stats(self, name: str | None = None) -> dict[str, Any]:
        """The counters."""
        return self.graph.stats(self.clock(), name)

    def op_reset_stats(self) -> dict[str, Any]:
        """All counters to zero."""
        self.graph.reset_stats()
        self.loop.late_max_s = 0.0
        return {}

    # Links.

    def op_set_link(
        self,
        link: str,
        params: dict[str, Any],
        dir: str = "both",  # noqa: A002 - the wire's word
    ) -> dict[str, Any]:
        """Change impairments."""
        found = self.graph.link(link)
        directions = found.directions(dir)
        for direction in directions:
            direction.how.changed(params)  # all or none
        for direction in directions:
            direction.configure(params)
        return {"ab": found.ab.describe(), "ba": found.ba.describe()}

    def op_cut(self, link: str, dir: str = "both") -> dict[str, Any]:  # noqa: A002
        """Unplug."""
        self.op_set_link(link, {"up": False}, dir)
        return {}

    def op_restore(self, link: str, dir: str = "both") -> dict[str, Any]:  # noqa: A002
        """Plug in."""
        self.op_set_link(link, {"up": True}, dir)
        return {}

    def op_pcap_start(self, link: str, file: str) -> dict[str, Any]:
        """Capture what enters a link."""
        found = self.graph.link(link)
        if found.tap is not None:
            raise ConfigError(f"link {link} is captured already")
        found.tap = Pcap(file)
        return {}

    def op_pcap_stop(self, link: str) -> dict[str, Any]:
        """End a capture."""
        found = self.graph.link(link)
        tap, found.tap = found.tap, None
        if not isinstance(tap, Pcap):
            raise ConfigError(f"link {link} is not captured")
        tap.close()
        return {"packets": tap.packets}

    # Nodes.

    def _box(self, name: object) -> Middlebox:
        node = self.graph.node(name)
        if not isinstance(node, Middlebox):
            raise ConfigError(f"{name!r} is no nat, firewall or nat64")
        return node

    def op_set_node(self, node: str, params: dict[str, Any]) -> dict[str, Any]:
        """Change behaviour."""
        self._box(node).configure(params)
        return {}

    def op_reboot(self, node: str, down_s: float = 0.0) -> dict[str, Any]:
        """Forget mappings."""
        return {"forgotten": self._box(node).reboot(self.clock(), float(down_s))}

    def op_readdress(self, node: str, external: list[str]) -> dict[str, Any]:
        """Other external addresses."""
        return {"forgotten": self.graph.readdress(node, external, self.clock())}

    def op_mappings(self, node: str, host: str | None = None) -> list[dict[str, Any]]:
        """Live mappings."""
        return self._box(node).mappings(self.clock(), host)

    def op_forward_add(self, node: str, **forward: Any) -> dict[str, Any]:
        """A static mapping."""
        self._box(node).forward_add(Forward.load(forward))
        return {}

    def op_forward_del(self, node: str, proto: str, **where: Any) -> dict[str, Any]:
        """Take a static mapping away."""
        box = self._box(node)
        number = {"udp": UDP, "tcp": TCP}[one_of("proto", proto, ("udp", "tcp"))]
        if isinstance(box, Translator):
            check_keys("forward_del", where, {"external_port"})
            box.forward_del(number, int(where["external_port"]))
        elif isinstance(box, Firewall):
            check_keys("forward_del", where, {"to", "port"})
            box.forward_del(number, addr_bytes(where["to"]), int(where["port"]))
        return {}

    def _router(self, name: object) -> Router:
        node = self.graph.node(name)
        if not isinstance(node, Router):
            raise ConfigError(f"{name!r} is no router or lan")
        return node

    def op_route_add(self, node: str, prefix: str, port: str) -> dict[str, Any]:
        """A route."""
        self._router(node).routes.add(prefix, port)
        return {}

    def op_route_del(self, node: str, prefix: str) -> dict[str, Any]:
        """No route."""
        self._router(node).routes.remove(prefix)
        return {}

    def close(self) -> None:
        """Write captures out."""
        for link in self.graph.links.values():
            if isinstance(link.tap, Pcap):
                link.tap.close()

    # The graph.

    def op_add(self, **config: Any) -> dict[str, Any]:
        """More of everything."""
        devices = self.graph.add(config)
        try:
            self.loop.open_devices([device.name for device in devices])
        except OSError:
            for device in devices:
                self.graph.remove_device(device.name)
            raise
        return {}

    def op_remove(self, device: str | None = None, link: str | None = None) -> dict[str, Any]:
        """Take a device (and its link) or a link away."""
        for found in self.graph.links.values():
            gone = found.name == link or device in found.ends
            if gone and isinstance(found.tap, Pcap):
                found.tap.close()
        if device is not None:
            self.graph.remove_device(device)
            self.loop.close_device(device)
        elif link is not None:
            self.graph.remove_link(link)
        else:
            raise ConfigError("remove: device or link")
        return {}

    def op_stop(self) -> dict[str, Any]:
        """End the engine once this is answered."""
        self.loop.stop()
        return {}


class _Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.incoming = bytearray()
        self.outgoing = bytearray()


class ControlServer:
    """Accepts clients at ``path`` and answers their lines; lives in the engine's loop."""

    def __init__(self, path: str, commands: Commands) -> None:
        self._commands = commands
        self._loop = commands.loop
        self._path = Path(path)
        self._path.unlink(missing_ok=True)
        self._clients: dict[int, _Client] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._path.chmod(0o600)
        self._listener.listen(16)
        self._listener.setblocking(False)
        self._loop.watch(self._listener.fileno(), self._accept)

    def _accept(self, events: int) -> None:
        del events
        try:
            sock, _ = self._listener.accept()
        except OSError:  # it went away before we came
            return
        sock.setblocking(False)
        client = self._clients[sock.fileno()] = _Client(sock)
        self._loop.watch(sock.fileno(), lambda events: self._serve(client, events))

    def _serve(self, client: _Client, events: int) -> None:
        try:
            if events & ~select.EPOLLOUT:
                self._read(client)
            self._flush(client)
        except OSError:
            self._drop(client)

    def _read(self, client: _Client) -> None:
        data = client.sock.recv(65536)
        if not data:
            raise ConnectionError("closed")
        client.incoming += data
        while (end := client.incoming.find(b"\n")) >= 0:
            line = bytes(client.incoming[:end])
            del client.incoming[: end + 1]
            client.outgoing += json.dumps(self._answer(line)).encode() + b"\n"
        if len(client.incoming) > _LINE_MAX:
            raise ConnectionError("line too long")

    def _answer(self, line: bytes) -> dict[str, Any]:
        number = None
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ConfigError("an object is expected")
            number = request.get("id")
            result = self._commands.call(request)
        except Exception as error:  # noqa: BLE001 - a bad request must not end the network
            return {"id": number, "ok": False, "error": str(error) or type(error).__name__}
        return {"id": number, "ok": True, "result": result}

    def _flush(self, client: _Client) -> None:
        if client.outgoing:
            try:
                sent = client.sock.send(client.outgoing)
            except BlockingIOError:
                sent = 0
            del client.outgoing[:sent]
        events = select.EPOLLIN | (select.EPOLLOUT if client.outgoing else 0)
        self._loop.watch(client.sock.fileno(), lambda events: self._serve(client, events), events)

    def _drop(self, client: _Client) -> None:
        fd = client.sock.fileno()
        self._loop.unwatch(fd)
        del self._clients[fd]
        client.sock.close()

    def close(self) -> None:
        """Close all connections and remove the socket's file."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._commands.close()
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)
