"""An MQTT broker in this process: for demos, tests and a LAN, never for privacy or many users.

It is amqtt (``pip install warpgate-core[broker]``), which speaks MQTT 3.1.1 only and lets anyone read
and write anything. Signals are sealed, so readers learn who talks to whom, not what; still, a broker
on the internet should be one of those that ``docs/deploy.md`` describes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from types import TracebackType
from typing import Any, Final, Self

from warpgate.errors import ConfigError, SignallingError
from warpgate.net.constants import IP4, IP6
from warpgate.server_urls import join_host_port

MAX_CONNECTIONS: Final = 1024
CLOSE_S: Final = 2.0
PORT_TRIES: Final = 5
_LOGGERS: Final = ("amqtt", "transitions")


class EmbeddedBroker:
    """A broker with the life of an ``async with`` block.

    Args:
        host: the address to listen on.
        port: TCP port; 0 takes a free one.

    Raises:
        ConfigError: on entering, when amqtt is not installed.
        SignallingError: on entering, when the address can't be listened on.

    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self.port = port
        self._broker: Any = None

    @property
    def url(self) -> str:
        """The broker's URL, for ``conf["brokers"]``; an unspecified host stands as loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"mqtt://{join_host_port(host, self.port)}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen; what ``async with`` does first."""
        broker_class = _import_broker()
        # amqtt has no way of telling which port it got, so a free one is found first; somebody else
        # may take it meanwhile, hence the tries.
        for attempt in range(PORT_TRIES if self.port == 0 else 1):
            port = self.port or _free_port(self.host)
            broker = broker_class(_config(self.host, port))
            try:
                await broker.start()
            except Exception as error:
                if not isinstance(error.__cause__, OSError):
                    raise
                if attempt + 1 == PORT_TRIES or self.port:
                    raise SignallingError(
                        f"can't listen on {join_host_port(self.host, port)}: {error.__cause__}"
                    ) from None
            else:
                self._broker, self.port = broker, port
                return

    async def close(self) -> None:
        """End every connection and stop listening; within two seconds, idempotent."""
        broker, self._broker = self._broker, None
        if broker is not None:
            stopping = asyncio.ensure_future(broker.shutdown())
            await asyncio.wait([stopping], timeout=CLOSE_S)
            if not stopping.done():
                stopping.cancel()
                await asyncio.wait([stopping])
            elif stopping.exception() is not None:
                logging.getLogger("warpgate").debug("amqtt: %r", stopping.exception())
            for stream in list(broker.streams):
                stream.cancel()
            if broker.streams:
                await asyncio.wait(list(broker.streams), timeout=CLOSE_S)


def _import_broker() -> Any:
    try:
        from amqtt.broker import Broker
        from amqtt.errors import AMQTTError
    except ImportError:
        raise ConfigError(
            "the embedded broker needs amqtt: pip install warpgate-core[broker], or use another "
            'broker by conf["brokers"] or WARPGATE_BROKERS'
        ) from None
    # Every client that goes away is an error to amqtt; who wants to know can add a handler.
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
            logger.propagate = False

    class QuietBroker(Broker):  # type: ignore[misc]
        """Neither complains of a client that leaves in its greeting nor forgets its connection."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.streams: set[asyncio.Task[Any]] = set()

        async def stream_connected(
            self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, **options: Any
        ) -> None:
            task = asyncio.current_task()
            assert task is not None
            self.streams.add(task)
            try:
                await super().stream_connected(reader, writer, **options)
            except (OSError, AMQTTError) as error:
                logging.getLogger("warpgate").debug("embedded broker: %r", error)
            finally:
                self.streams.discard(task)
                writer.close()

    return QuietBroker


def _config(host: str, port: int) -> dict[str, Any]:
    return {
        "listeners": {
            "default": {
                "type": "tcp",
                "bind": join_host_port(host, port),
                "max_connections": MAX_CONNECTIONS,
            }
        },
        "plugins": {
            "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True},
        },
    }


def _free_port(host: str) -> int:
    with socket.socket(IP6 if ":" in host else IP4, socket.SOCK_STREAM) as sock:
        try:
            sock.bind((host, 0))
        except OSError as error:
            raise SignallingError(f"can't listen on {host}: {error.strerror}") from None
        return int(sock.getsockname()[1])
