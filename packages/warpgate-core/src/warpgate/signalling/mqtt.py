"""A session with one MQTT broker: the only module that imports aiomqtt (and so paho).

Whoever imports this module loads them: do it when the first connection is made.

aiomqtt is used for the protocol. Three things are done here instead, since a dead, silent or hostile
broker must cost nothing: the socket (so that every wait has a deadline and ends when asked),
acknowledgements (with their reason, and failing at once when the connection ends), and incoming
messages (straight to the owner, without a task and an unbounded queue).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from warpgate.errors import SignallingError
from warpgate.net.addresses import user_address
from warpgate.protocol.web_page import is_web_page
from warpgate.server_urls import BrokerURL
from warpgate.signalling import mqtt_dial as dial
from warpgate.signalling.broker_policy import WEBSOCKET_PATH
from warpgate.signalling.mqtt_packets import take_publish

MQTT_5: Final = 5
MQTT_3_1_1: Final = 4
"""Protocol levels as they stand in CONNECT."""
MAX_PACKET_BYTES: Final = 16 * 1024
CONNACK_TIMEOUT_S: Final = 2.0
ACK_TIMEOUT_S: Final = 2.0
CLOSE_S: Final = 0.3
KEEPALIVE_S: Final = 20
MAX_UNACKNOWLEDGED: Final = 256
READ_BYTES: Final = 64 * 1024
READ_SLICE_S: Final = 0.002
"""How long one broker's messages are read before it is the turn of others."""
NO_MATCHING_SUBSCRIBERS: Final = 0x10

# CONNACK reasons that another version of the protocol would not change: credentials, load, bans.
_FINAL_REASONS: Final = {0x82, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x97, 0x9C, 0x9D, 0x9F}

# paho reports every lost connection as an error; the owner of a session hears of it anyway.
_QUIET: Final = logging.getLogger("warpgate.mqtt.paho")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False

OnMessage = Callable[[str, bytes, bool], None]
"""Called with topic, payload and whether it was retained."""


class VersionRefused(SignallingError):
    """The broker took the connection but not this version of MQTT: try the other one."""


class Session:
    """An open connection to a broker; made by :func:`open_session`.

    Attributes:
        version: 5, or 4 for MQTT 3.1.1.
        local_ip: this machine's end.
        ended: resolved with the cause, as text, once the connection is gone.

    """

    def __init__(self, client: _Client, twin: socket.socket, version: int) -> None:
        self.version = version
        self.local_ip = user_address(twin.getsockname())[0]
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._client = client
        self._twin = twin
        client.watch(self._lost)

    async def subscribe(self, topic: str) -> None:
        """Subscribe with QoS 1 and wait for the broker's word.

        Raises:
            SignallingError: refused, or no answer.

        """
        asked = asyncio.ensure_future(self._client.subscribe(topic, qos=1, timeout=ACK_TIMEOUT_S))
        try:
            first: list[asyncio.Future[Any]] = [asked, self.ended]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise SignallingError(self.ended.result())
            codes = asked.result()
        except aiomqtt.MqttError as error:
            raise SignallingError(f"subscribing to {topic}: {error}") from None
        finally:
            asked.cancel()
        for code in codes:
            if (code.value if isinstance(code, ReasonCode) else code) >= 0x80:
                raise SignallingError(f"the broker refused the subscription to {topic}: {code}")

    async def unsubscribe(self, topic: str) -> None:
        """End a subscription; what the broker says to it does not matter."""
        with contextlib.suppress(aiomqtt.MqttError):
            await self._client.unsubscribe(topic, timeout=ACK_TIMEOUT_S)

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        """Publish with QoS 1 and wait for the acknowledgement, at most 2 s.

        Args:
            topic: where to.
            payload: the message.
            retain: let the broker keep it for later subscribers.
            expiry_s: seconds after which the broker may drop it (MQTT 5).

        Returns:
            False when the broker said that nobody is subscribed (MQTT 5 only), else True.

        Raises:
            SignallingError: refused, or the connection ended, or no acknowledgement came in time.

        """
        if self.ended.done():
            raise SignallingError(self.ended.result())
        properties = None
        if expiry_s is not None and self.version == MQTT_5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = expiry_s
        reason = await self._client.publish_acknowledged(topic, payload, retain, properties)
        return reason != NO_MATCHING_SUBSCRIBERS

    def abort(self, cause: str = "closed") -> None:
        """End the connection at once."""
        self._lost(cause)

    async def close(self) -> None:
        """Say goodbye to the broker and end the connection, within 0.3 s."""
        if not self.ended.done():
            try:
                async with asyncio.timeout(CLOSE_S):
                    await self._client.__aexit__(None, None, None)
            except (TimeoutError, aiomqtt.MqttError):
                pass
            finally:
                self._lost("closed")

    def _lost(self, cause: str) -> None:
        if not self.ended.done():
            self.ended.set_result(cause)
            self._client.drop(cause)
            dial.discard(self._twin)


class _Client(aiomqtt.Client):
    """aiomqtt's client with a socket, acknowledgements and message delivery of ours."""

    def __init__(
        self,
        sock: socket.socket,
        url: BrokerURL,
        version: int,
        context: ssl.SSLContext | None,
        on_message: OnMessage,
    ) -> None:
        websockets = url.scheme in ("ws", "wss")
        properties = None
        if version == MQTT_5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.MaximumPacketSize = MAX_PACKET_BYTES
        super().__init__(
            url.host,
            url.port,
            username=url.user,
            password=url.password,
            logger=_QUIET,
            # Random, so that no stranger can take a session over; 23 characters are safe everywhere.
            identifier="wg" + secrets.token_hex(10),
            protocol=aiomqtt.ProtocolVersion(version),
            clean_session=True if version == MQTT_3_1_1 else None,
            transport="websockets" if websockets else "tcp",
            websocket_path=(url.path or WEBSOCKET_PATH) if websockets else None,
            timeout=CONNACK_TIMEOUT_S,
            keepalive=KEEPALIVE_S,
            max_queued_outgoing_messages=MAX_UNACKNOWLEDGED,
            max_inflight_messages=MAX_UNACKNOWLEDGED,
            properties=properties,
            tls_context=context,
            socket_options=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),
        )
        self.pending_calls_threshold = MAX_UNACKNOWLEDGED
        self._disconnected.add_done_callback(_retrieve)  # connecting may replace it
        self._deliver = on_message
        self._mqtt5 = version == MQTT_5
        self._acks: dict[int, asyncio.Future[int]] = {}
        # paho connects and shakes hands in a thread, which nothing could interrupt: hand it a socket
        # that is connected already, TLS included. What is left to it ends when the socket's twin does.
        paho: Any = self._client
        paho.connect_timeout = dial.CONNECT_TIMEOUT_S
        paho._create_socket_connection = lambda: sock  # noqa: SLF001  # no public way
        paho._ssl_wrap_socket = lambda connected: connected  # noqa: SLF001
        self._receive = paho._sock_recv  # noqa: SLF001
        self._chunk = 1 if websockets else READ_BYTES
        self._fresh = not websockets  # those begin with a web server's answer
        self.web_page = False
        self._buffer = memoryview(b"")
        self._drained = False
        paho._sock_recv = self._receive_some  # noqa: SLF001

    def watch(self, lost: Callable[[str], None]) -> None:
        """Call ``lost`` with the cause when the connection has ended."""

        def ended(future: asyncio.Future[None]) -> None:
            error = None if future.cancelled() else future.exception()
            lost(f"the connection to the broker ended: {error}" if error else "disconnected")

        self._disconnected.add_done_callback(ended)

    async def publish_acknowledged(
        self, topic: str, payload: bytes, retain: bool, properties: Properties | None
    ) -> int:
        """Publish and return the reason code of the acknowledgement, below 0x80."""
        info = self._client.publish(topic, payload, 1, retain, properties)
        if info.rc:
            raise SignallingError(f"not sent: {aiomqtt.MqttCodeError(info.rc)}")
        ack: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._acks[info.mid] = ack
        try:
            async with asyncio.timeout(ACK_TIMEOUT_S):
                reason = await ack
        except TimeoutError:
            raise SignallingError("the broker did not acknowledge the message") from None
        finally:
            self._acks.pop(info.mid, None)
        if reason >= 0x80:
            raise SignallingError(f"the broker refused the message: reason 0x{reason:02x}")
        return reason

    def drop(self, cause: str) -> None:
        """Close the socket and fail what waits for an acknowledgement."""
        self._disconnected.add_done_callback(_retrieve)
        self._client._sock_close()  # noqa: SLF001  # disconnect() would wait for a full send buffer
        for ack in self._acks.values():
            if not ack.done():
                ack.set_exception(SignallingError(cause))

    # What paho and the event loop call, on the loop's thread.

    def _receive_some(self, size: int) -> bytes:
        """Stand in for paho's reading of ``size`` bytes, which asks for single bytes mostly."""
        if size > MAX_PACKET_BYTES:  # MQTT 3.1.1 can't forbid them
            raise ConnectionError(f"a packet of {size} bytes")
        if not self._buffer:
            try:
                self._buffer = memoryview(self._receive(max(size, self._chunk)))
            except BlockingIOError:
                self._drained = True
                raise
            self.web_page = self._fresh and is_web_page(bytes(self._buffer[:16]))
            self._fresh = False
            if self.web_page:
                raise ConnectionError("a web page")
        taken, self._buffer = bytes(self._buffer[:size]), self._buffer[size:]
        return taken

    def _on_socket_open(self, client: Any, userdata: Any, sock: Any) -> None:
        super()._on_socket_open(client, userdata, sock)
        # aiomqtt reads one packet a wake-up: under a flood the broker's queue would be full then,
        # and right messages would wait in it for seconds. The last reader of a socket holds.
        self._loop.call_soon_threadsafe(self._loop.add_reader, sock.fileno(), self._readable)

    def _readable(self) -> None:
        end = self._loop.time() + READ_SLICE_S
        self._drained = False
        try:
            while not self._drained and self._client.socket() is not None:
                if self._loop.time() >= end:
                    self._loop.call_soon(self._readable)  # what is in buffers wakes nobody up
                    return
                if not self._take_quickly():
                    self._client.loop_read()
        except Exception as error:  # noqa: BLE001  # whatever a broker sends ends its connection only
            for future in (self._connected, self._disconnected):
                if not future.done():
                    future.set_exception(aiomqtt.MqttError(f"unreadable: {error!r}"))

    def _take_quickly(self) -> bool:
        """Deliver the next packet if it is a plain message; a flood has 10,000 of them a second."""
        paho: Any = self._client
        if not self._buffer or paho._in_packet["command"]:  # noqa: SLF001  # in the middle of one
            return False
        found = take_publish(self._buffer, self._mqtt5, MAX_PACKET_BYTES)
        if found is None:
            return False
        topic, payload, number, size = found
        self._buffer = self._buffer[size:]
        self._deliver(topic, payload, False)
        if number is not None:
            paho._send_puback(number)  # noqa: SLF001  # no public way
        return True

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        self._deliver(topic, bytes(message.payload), bool(message.retain))

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Any
    ) -> None:
        ack = self._acks.pop(mid, None)
        if ack is not None and not ack.done():
            ack.set_result(int(reason_code.value))

    def _on_disconnect(
        self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:
        if not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError("the broker closed the connection"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)


async def open_session(
    url: BrokerURL,
    *,
    version: int,
    on_message: OnMessage,
    permit: Callable[[str], bool],
    reach: Callable[[str], Awaitable[str]] | None = None,
    context: ssl.SSLContext | None = None,
    reached: asyncio.Future[None] | None = None,
) -> Session:
    """Connect to a broker.

    Args:
        url: which.
        version: 5, or 4 for MQTT 3.1.1.
        on_message: called on the event loop for every message that arrives.
        permit, reach: as for :func:`~warpgate.signalling.mqtt_dial.connect_socket`.
        context: for TLS; None takes the system's certificate authorities.
        reached: resolved when the connection stands, TLS included, and MQTT begins.

    Raises:
        VersionRefused: the broker took the connection but not this version, or did not answer it.
        WrongServer: somebody else answered in its stead.
        SignallingError: it can't be reached, or refused for another reason.

    """
    loop = asyncio.get_running_loop()
    sock = await dial.connect_socket(url, permit, reach)
    twin = sock.dup()
    enter: asyncio.Task[Any] | None = None
    try:
        context = await dial.context_for(url.scheme, context)
        if context is not None:
            sock = await dial.tls_handshake(sock, context, url.host)
        if reached is not None and not reached.done():
            reached.set_result(None)
        client = _Client(sock, url, version, context, on_message)
        enter = loop.create_task(client.__aenter__())
        enter.add_done_callback(_retrieve)
        await asyncio.wait([enter], timeout=CONNACK_TIMEOUT_S)
        if not enter.done():
            raise VersionRefused("the broker does not answer")
        enter.result()
    except BaseException as error:
        dial.discard(twin)
        if enter is not None:
            # The twin's end wakes paho's thread; nothing of it may be left when the socket closes.
            await asyncio.wait([enter], timeout=CLOSE_S)
            enter.cancel()
            client.drop("closed")
        sock.close()
        if enter is not None and client.web_page:
            raise dial.web_page() from None
        if isinstance(error, aiomqtt.MqttError):
            raise _refusal(error) from None
        raise
    return Session(client, twin, version)


def _refusal(error: aiomqtt.MqttError) -> SignallingError:
    reason = getattr(error, "rc", None)
    if isinstance(reason, ReasonCode):
        if reason.value in _FINAL_REASONS:
            return SignallingError(f"the broker refused the connection: {reason}")
        return VersionRefused(f"the broker refused the connection: {reason}")
    if "WebSocket handshake" in str(error):
        return dial.no_websocket()
    return VersionRefused(str(error))


def _retrieve(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()
