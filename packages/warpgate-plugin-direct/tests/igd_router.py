"""A UPnP IGD in user space on the loopback interface, that does what a test tells it to."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

LOCAL = "127.0.0.1"
PUBLIC = "203.0.113.7"
PORT = 12345
BOTH = {("TCP", PORT): PORT, ("UDP", PORT): PORT}
IGD = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
WAN1 = "urn:schemas-upnp-org:service:WANIPConnection:1"
WAN2 = "urn:schemas-upnp-org:service:WANIPConnection:2"
TYPES = {"Port": "ui2", "LeaseDuration": "ui4", "Enabled": "boolean"}
ADD = [
    "NewRemoteHost", "NewExternalPort", "NewProtocol", "NewInternalPort", "NewInternalClient",
    "NewEnabled", "NewPortMappingDescription", "NewLeaseDuration",
]  # fmt: skip
ENTRY_OUT = ["NewInternalPort", "NewInternalClient", "NewEnabled", "NewLeaseDuration"]
ACTIONS: dict[str, tuple[list[str], list[str]]] = {
    "GetExternalIPAddress": ([], ["NewExternalIPAddress"]),
    "AddPortMapping": (ADD, []),
    "AddAnyPortMapping": (ADD, ["NewReservedPort"]),
    "DeletePortMapping": (ADD[:3], []),
    "GetSpecificPortMappingEntry": (ADD[:3], ENTRY_OUT),
}


class UpnpError(Exception):
    """Becomes a SOAP fault."""


class UpnpRouter(asyncio.DatagramProtocol):
    """An IGD: SSDP on a UDP port, HTTP on a TCP port."""

    def __init__(self) -> None:
        self.service = WAN1
        self.actions = [name for name in ACTIONS if name != "AddAnyPortMapping"]
        self.external_ip = PUBLIC
        self.mappings: dict[tuple[str, int], int] = {}
        self.others: set[int] = set()
        self.errors: dict[str, list[int]] = {}
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.permanent_only = False
        self.client = LOCAL
        self.location = ""
        self.override: dict[str, bytes] = {}
        self.before_answer: Callable[[Any], None] | None = None
        self.before_adding: Callable[[], Awaitable[Any]] | None = None
        self.gets = 0

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self.server = await asyncio.start_server(self._serve, LOCAL, 0)
        self.http_port = self.server.sockets[0].getsockname()[1]
        self.location = self.location or f"http://{LOCAL}:{self.http_port}/root.xml"
        self.udp, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(LOCAL, 0))
        self.ssdp_port = self.udp.get_extra_info("sockname")[1]

    async def close(self) -> None:
        self.udp.close()
        self.server.close()
        await self.server.wait_closed()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self.before_answer is not None:
            self.before_answer(addr)
        self.udp.sendto(self.answer(self.location), addr)

    @staticmethod
    def answer(location: str) -> bytes:
        return f"HTTP/1.1 200 OK\r\nST: {IGD}\r\nLOCATION: {location}\r\n\r\n".encode()

    async def _serve(self, reader: Any, writer: Any) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int((re.search(r"(?i)content-length: (\d+)", head) or [0, 0])[1])
            body = (await reader.readexactly(length)).decode()
            path = head.split(" ")[1]
            if path in self.override:
                writer.write(self.override[path])
            elif head.startswith("GET"):
                self.gets += 1
                self._send(writer, self._root() if path == "/root.xml" else self._scpd())
            else:
                if self.before_adding is not None and "#AddPortMapping" in head:
                    await self.before_adding()
                self._control(writer, head, body)
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    @staticmethod
    def _send(writer: Any, text: str, status: str = "200 OK") -> None:
        data = text.encode()
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)

    def _root(self) -> str:
        return (
            '<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device>'
            f"<deviceType>{IGD}</deviceType><UDN>uuid:1</UDN><serviceList><service>"
            f"<serviceType>{self.service}</serviceType><serviceId>urn:x:1</serviceId>"
            "<SCPDURL>/scpd.xml</SCPDURL><controlURL>/ctl</controlURL><eventSubURL>/evt</eventSubURL>"
            "</service></serviceList></device></root>"
        )

    def _scpd(self) -> str:
        actions, names = "", set()
        for action in self.actions:
            arguments = ""
            for way, words in zip(("in", "out"), ACTIONS[action], strict=True):
                for word in words:
                    names.add(word)
                    arguments += (
                        f"<argument><name>{word}</name><direction>{way}</direction>"
                        f"<relatedStateVariable>{word}</relatedStateVariable></argument>"
                    )
            actions += (
                f"<action><name>{action}</name><argumentList>{arguments}</argumentList></action>"
            )
        variables = ""
        for name in sorted(names):
            kind = next((TYPES[end] for end in TYPES if name.endswith(end)), "string")
            variables += (
                f'<stateVariable sendEvents="no"><name>{name}</name>'
                f"<dataType>{kind}</dataType></stateVariable>"
            )
        return (
            '<?xml version="1.0"?><scpd xmlns="urn:schemas-upnp-org:service-1-0">'
            f"<actionList>{actions}</actionList>"
            f"<serviceStateTable>{variables}</serviceStateTable></scpd>"
        )

    def _control(self, writer: Any, head: str, body: str) -> None:
        name = (re.search(r'(?i)soapaction: "[^#]*#(\w+)"', head) or ["", ""])[1]
        given = dict(re.findall(r"<(New\w+)>([^<]*)</", body))
        self.calls.append((name, given))
        try:
            found = self._act(name, given)
        except UpnpError as error:
            fault = (
                "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
                '<UPnPError xmlns="urn:schemas-upnp-org:control-1-0">'
                f"<errorCode>{error}</errorCode><errorDescription>E</errorDescription>"
                "</UPnPError></detail></s:Fault>"
            )
            self._send(writer, self._envelope(fault), "500 Internal Server Error")
            return
        inner = "".join(f"<{key}>{value}</{key}>" for key, value in found.items())
        self._send(
            writer,
            self._envelope(
                f'<u:{name}Response xmlns:u="{self.service}">{inner}</u:{name}Response>'
            ),
        )

    @staticmethod
    def _envelope(inner: str) -> str:
        return (
            '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/">'
            f"<s:Body>{inner}</s:Body></s:Envelope>"
        )

    def _act(self, name: str, given: dict[str, str]) -> dict[str, Any]:
        if self.errors.get(name):
            raise UpnpError(self.errors[name].pop(0))
        if name == "GetExternalIPAddress":
            return {"NewExternalIPAddress": self.external_ip}
        key = given["NewProtocol"], int(given["NewExternalPort"])
        if name in ("AddPortMapping", "AddAnyPortMapping"):
            assert given["NewInternalClient"] == LOCAL
            if self.permanent_only and given["NewLeaseDuration"] != "0":
                raise UpnpError(725)
            if key[1] in self.others:
                if name == "AddPortMapping":
                    raise UpnpError(718)
                key = key[0], key[1] + 1
            self.mappings[key] = int(given["NewInternalPort"])
            return {"NewReservedPort": key[1]} if name == "AddAnyPortMapping" else {}
        if key not in self.mappings:
            raise UpnpError(714)
        if name == "DeletePortMapping":
            del self.mappings[key]
            return {}
        return dict(zip(ENTRY_OUT, (self.mappings[key], self.client, 1, 60), strict=True))

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]
