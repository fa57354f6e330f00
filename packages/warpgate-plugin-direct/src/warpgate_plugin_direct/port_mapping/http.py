"""Just enough HTTP/1.1 for a router: one request a connection, everything bounded.

async-upnp-client takes any object with ``async_http_request``. Its own, on aiohttp, follows redirects,
resolves names, reads without a limit and can't be bound to a local address.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from warpgate_plugin_direct.port_mapping.model import MappingError

MAX_HEAD_BYTES: Final = 16384
MAX_BODY_BYTES: Final = 262144
MAX_REQUESTS: Final = 40
"""For one description with all its services; IGDs have five to ten."""
TIMEOUT_S: Final = 8.0


class Requester:
    """Sends the library's requests to the gateway, and to nobody else.

    Args:
        gateway: the address that is dialled, whatever a URL says.
        local_ip: the address to come from: routers map ports for the asker only.
        response: the library's class for answers.
        timeout_s: for one request, in seconds.

    Attributes:
        left: how many requests it will carry out.
        body: of the last answer.

    """

    def __init__(
        self, gateway: str, local_ip: str, response: Any, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._gateway = gateway
        self._local_ip = local_ip
        self._response = response
        self._timeout_s = timeout_s
        self.left = MAX_REQUESTS
        self.body = ""

    async def async_http_request(self, http_request: Any) -> Any:
        """Carry out a request.

        Raises:
            MappingError: no answer, or one that is too long or no HTTP.

        """
        if self.left <= 0:
            raise MappingError(f"its description wants more than {MAX_REQUESTS} requests")
        self.left -= 1
        try:
            parts = urlsplit(http_request.url)
            port = parts.port or 80
        except ValueError:
            raise MappingError("it names a URL that can't be used") from None
        if parts.scheme != "http":
            raise MappingError(f"it names a URL of the scheme {parts.scheme[:16]!r}")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        head = {**http_request.headers, "Host": parts.netloc}
        data = _request(http_request.method, target, head, http_request.body or "")
        try:
            async with asyncio.timeout(self._timeout_s):
                status, headers, body = await self._exchange(port, data)
        except TimeoutError:
            raise MappingError(
                f"no answer from its port {port} for {self._timeout_s:g} s"
            ) from None
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise MappingError(f"its port {port}: {error or type(error).__name__}") from error
        self.body = body.decode("utf-8", "replace")
        return self._response(status, headers, self.body)

    async def _exchange(self, port: int, data: bytes) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection(
            self._gateway, port, local_addr=(self._local_ip, 0), limit=MAX_HEAD_BYTES
        )
        try:
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            status, headers = _parse_head(head)
            return status, headers, await _body(reader, headers)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _request(method: str, target: str, headers: Mapping[str, str], body: str) -> bytes:
    raw = body.encode()
    fields = {**headers, "Content-Length": str(len(raw)), "Connection": "close"}
    lines = [f"{method} {target} HTTP/1.1", *(f"{key}: {value}" for key, value in fields.items())]
    text = "\r\n".join(lines)
    if not text.isascii() or text.count("\n") != len(lines) - 1 or text.count(" HTTP/1.1") != 1:
        raise MappingError("it names a URL that can't be used")
    return text.encode("ascii") + b"\r\n\r\n" + raw


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    version, status = first.split(" ", 2)[:2]
    if not version.startswith("HTTP/1."):
        raise ValueError("answered with something that is not HTTP")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return int(status), headers


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return await _chunks(reader)
    if "content-length" in headers:
        length = int(headers["content-length"])
        if not 0 <= length <= MAX_BODY_BYTES:
            raise ValueError(f"an answer of {length} bytes; {MAX_BODY_BYTES} at most")
        return await reader.readexactly(length)
    body = bytearray()
    while piece := await reader.read(65536):
        body += piece
        _check_size(body)
    return bytes(body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        line = await reader.readuntil(b"\r\n")
        length = int(line.split(b";")[0], 16)
        if not 0 <= length <= MAX_BODY_BYTES:
            raise ValueError("a chunk that is too long")
        if length == 0:
            return bytes(body)
        body += await reader.readexactly(length)
        _check_size(body)
        await reader.readexactly(2)


def _check_size(body: bytearray) -> None:
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"an answer of more than {MAX_BODY_BYTES} bytes")
