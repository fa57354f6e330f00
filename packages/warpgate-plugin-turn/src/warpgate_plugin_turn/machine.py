"""One allocation on a TURN server, without the socket (RFC 8656); PURE.

``start`` allocates; ``permit`` and ``bind`` let peers through; what is there is renewed by timers,
whether anything is sent or not; ``close`` deletes the allocation. Events tell the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from warpgate.errors import AllocationExpired, AllocationRefused, RelayError, RemoteProtocolError
from warpgate.events import Counters
from warpgate.net.constants import IP4, af_name
from warpgate.stun.attributes import XOR_MAPPED_ADDRESS, Address
from warpgate.stun.message import TRANSACTION_ID_BYTES, Message, MessageClass, encode
from warpgate_plugin_turn.errors import Forbidden, NotSupported, ServerSilent, ServerUnreachable
from warpgate_plugin_turn.grants import CHANNEL_LIFETIME_S, PERMISSION_LIFETIME_S, RENEW_AT, Grants
from warpgate_plugin_turn.machine_events import (
    Allocated,
    Closed,
    Event,
    Failed,
    Incoming,
    PeerData,
    Refused,
)
from warpgate_plugin_turn.requests import GIVE_UP_S, Requests
from warpgate_plugin_turn.wire import (
    ALLOCATE,
    CONNECT,
    CONNECTION_ATTEMPT,
    CONNECTION_ID,
    DATA,
    DATA_ATTRIBUTE,
    LIFETIME,
    REFRESH,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    SEND,
    TURN_ATTRIBUTES,
    UDP_PROTOCOL,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    channel_data,
    is_channel_data,
    read_channel_data,
)

LIFETIME_S: Final = 600  # RFC 8656 section 3.2; the server decides
PROBE_S: Final = 4.0  # a server that has been silent for so long is asked whether it lives
FAREWELL_S: Final = 1.5
MAX_EVENTS: Final = 1024


class State(Enum):
    """Where an allocation is."""

    IDLE = "idle"
    ALLOCATING = "allocating"
    ALLOCATED = "allocated"
    CLOSING = "closing"
    ENDED = "ended"


class TurnMachine:
    """One allocation.

    Args:
        username, password: the long-term credentials.
        entropy: ``entropy(n)`` returns n random bytes.
        server: the server's name, for texts.
        reliable: the connection to the server is a stream.
        family: of the relayed address, ``IP4`` or ``IP6``.
        protocol: what is relayed, ``UDP_PROTOCOL`` or ``TCP_PROTOCOL`` (RFC 6062).
        permission_lifetime_s, channel_lifetime_s: as the server has them; the RFC's by default.
        probe_s: a server that is silent for so long is asked for a refresh.
        give_up_s: a request is waited for so long.
        counters: counts what was ignored, as ``turn_…``.

    """

    def __init__(
        self,
        *,
        username: str,
        password: str,
        entropy: Callable[[int], bytes],
        server: str,
        reliable: bool = False,
        family: int = IP4,
        protocol: int = UDP_PROTOCOL,
        permission_lifetime_s: float = PERMISSION_LIFETIME_S,
        channel_lifetime_s: float = CHANNEL_LIFETIME_S,
        probe_s: float = PROBE_S,
        give_up_s: float = GIVE_UP_S,
        counters: Counters | None = None,
    ) -> None:
        self.state = State.IDLE
        self.server = server
        self.family = family
        self.relayed: Address | None = None
        self.mapped: Address | None = None
        self.counters = Counters() if counters is None else counters
        self.requests = Requests(
            username=username, password=password, server=server, reliable=reliable,
            entropy=entropy, give_up_s=give_up_s, counters=self.counters,
        )  # fmt: skip
        self._entropy = entropy
        self._reliable = reliable
        self._protocol = protocol
        self._probe_s = self._usual_probe_s = probe_s
        self.heard = 0.0
        self._give_up_s = give_up_s
        self._refresh_at = 0.0
        self._refreshing = False
        self._farewell_by = 0.0
        self._events: deque[Event] = deque()
        self._doubtful: list[Event] = []
        self.grants = Grants(
            self.requests,
            self._granted,
            self._lost_in_use,
            permission_lifetime_s,
            channel_lifetime_s,
        )

    # What the owner asks for.

    def start(self, now: float) -> None:
        """Ask for the allocation."""
        self.state = State.ALLOCATING
        self.heard = now
        wanted: list[tuple[int, Any]] = [(REQUESTED_TRANSPORT, self._protocol)]
        if (
            self.family != IP4
        ):  # RFC 8656 section 7.1: IPv4 is the default, and old servers know no other
            wanted.append((REQUESTED_ADDRESS_FAMILY, self.family))
        self.requests.ask(ALLOCATE, "Allocate", wanted, self._on_allocate, now)

    def permit(self, ip: str, now: float) -> bool:
        """Let packets from an IP address through; ``Permitted`` or ``Refused`` tells how it went.

        Returns:
            False when there are ``MAX_PERMISSIONS`` already, or no allocation.

        """
        return self.state is State.ALLOCATED and self.grants.permit(ip, now)

    def bind(self, peer: Address, now: float) -> bool:
        """Bind a channel to a peer, so that its datagrams take four bytes and no STUN message.

        Returns:
            False when there are ``MAX_CHANNELS`` already, or no allocation.

        """
        return self.state is State.ALLOCATED and self.grants.bind(peer, now)

    def probe_every(self, seconds: float | None) -> None:
        """Ask a server that is silent for so long for a refresh; None: as it was made."""
        self._probe_s = self._usual_probe_s if seconds is None else seconds

    def connect(self, peer: Address, done: Callable[[int | RelayError], None], now: float) -> None:
        """Let the relay connect to a peer (RFC 6062 section 4.3).

        Args:
            peer: where to.
            done: called once, with what the server calls the connection or with what went wrong;
                not where the allocation ends before.
            now: the time.

        """

        def answered(result: Message | RelayError, _now: float) -> None:
            if isinstance(result, RelayError):
                done(result)
                return
            number = result.get(CONNECTION_ID)
            missing = RelayError(f"TURN server {self.server} did not say which connection it made")
            done(missing if number is None else number)

        self.requests.ask(CONNECT, "Connect", [(XOR_PEER_ADDRESS, peer)], answered, now)

    def message_for(self, data: bytes, peer: Address) -> bytes:
        """Return what is sent to the server so that a peer gets a datagram."""
        number = self.grants.channel_of(peer)
        if number is not None:
            return channel_data(number, data, padded=self._reliable)
        return encode(
            SEND,
            MessageClass.INDICATION,
            self._entropy(TRANSACTION_ID_BYTES),
            [(XOR_PEER_ADDRESS, peer), (DATA_ATTRIBUTE, data)],
            fingerprint=False,
            table=TURN_ATTRIBUTES,
        )

    def probe(self, now: float) -> None:
        """Ask the server at once whether the allocation lives."""
        if self.state is State.ALLOCATED and not self._refreshing:
            self._refreshing = True
            wanted = [(LIFETIME, LIFETIME_S)]
            self.requests.ask(REFRESH, "Refresh", wanted, self._on_refresh, now)

    def close(self, now: float) -> None:
        """Delete the allocation; ``Closed`` comes when the server has said yes, or does not answer.

        One that is just being asked for may be made all the same, and is deleted then.
        """
        if self.state is State.ALLOCATED:
            self.requests.clear()
            self._say_farewell(now)
        elif self.state is State.ALLOCATING and self.requests.committed:
            self.requests.no_further_tries()
        elif self.state is not State.CLOSING:
            self._end(Closed())
            return
        if self.state is not State.CLOSING:
            self.state = State.CLOSING
            self._farewell_by = now + FAREWELL_S

    def _say_farewell(self, now: float) -> None:
        self.requests.ask(REFRESH, "Refresh", [(LIFETIME, 0)], self._on_farewell, now)

    def lost(self, error: RelayError) -> None:
        """Take note that the connection to the server is gone."""
        self._end(Closed() if self.state is State.CLOSING else Failed(error))

    # The machine's way in and out.

    def receive(self, data: bytes, addr: Address, now: float) -> None:
        """Take one message from the server."""
        if is_channel_data(data):
            found = self.receive_channel(data, now)
            if found is not None and len(self._events) < MAX_EVENTS:
                self._events.append(PeerData(*found))
            return
        message = self.requests.read(data)
        if message is None or self.state in (State.IDLE, State.ENDED):
            return
        if message.message_class == MessageClass.INDICATION:
            self.heard = now
            self._indicated(message)
        elif message.message_class == MessageClass.REQUEST:
            self.counters.count("turn_reflected")
        else:
            self.heard = now
            self.requests.respond(message, now)

    def receive_channel(self, data: bytes, now: float) -> tuple[Address, bytes] | None:
        """Read ChannelData without detours: the peer and its datagram, or None (counted)."""
        try:
            number, payload = read_channel_data(data)
        except RemoteProtocolError:
            self.counters.count("turn_malformed")
            return None
        peer = self.grants.peer_of(number)
        if peer is None or self.state is not State.ALLOCATED:
            self.counters.count("turn_unknown_channel")
            return None
        self.heard = now
        return peer, payload

    def outgoing(self, now: float) -> list[bytes]:
        """Return the messages to send now."""
        out, self.requests.out = self.requests.out, []
        return out

    def next_timeout(self) -> float | None:
        """Return when :meth:`handle_timeout` wants to be called."""
        if self.state in (State.IDLE, State.ENDED):
            return None
        times = [self.requests.next_timeout()]
        if self.state is State.CLOSING:
            times.append(self._farewell_by)
        elif self.state is State.ALLOCATED:
            if not self._refreshing:
                times += [self._refresh_at, self.heard + self._probe_s]
            times.append(self.grants.next_timeout())
        return min((at for at in times if at is not None), default=None)

    def handle_timeout(self, now: float) -> None:
        """Repeat, renew, probe, give up: whatever is due."""
        self.requests.handle_timeout(now)
        if self.state is State.CLOSING and now >= self._farewell_by:
            self.counters.count("turn_farewells_unanswered")
            self._end(Closed())
        if self.state is not State.ALLOCATED:
            return
        if now >= min(self._refresh_at, self.heard + self._probe_s):
            self.probe(now)
        self.grants.handle_timeout(now)

    def next_event(self) -> Event | None:
        """Return the next thing that happened, and forget it."""
        return self._events.popleft() if self._events else None

    # What the server says.

    def _on_allocate(self, result: Message | RelayError, now: float) -> None:
        if self.state is State.CLOSING:  # nobody wants it any more
            if isinstance(result, RelayError):
                self._end(Closed())
            else:
                self.counters.count("turn_allocations_returned")
                self._say_farewell(now)
            return
        if isinstance(result, RelayError):
            self._end(Failed(result))
            return
        relayed, mapped = result.get(XOR_RELAYED_ADDRESS), result.get(XOR_MAPPED_ADDRESS)
        lifetime = result.get(LIFETIME)
        if relayed is None or mapped is None or not lifetime:
            self._end(Failed(RelayError(f"TURN server {self.server} left out what it allocated")))
        elif (":" in relayed[0]) != (self.family != IP4):
            text = f"allocated {relayed[0]}, which is not {af_name(self.family)}"
            self._end(Failed(RelayError(f"TURN server {self.server} {text}")))
        elif self.state is State.ALLOCATING:
            self.state = State.ALLOCATED
            self.relayed, self.mapped = relayed, mapped
            self._refresh_at = now + lifetime * RENEW_AT
            self._events.append(Allocated(relayed, mapped, float(lifetime)))

    def _on_refresh(self, result: Message | RelayError, now: float) -> None:
        self._refreshing = False
        if isinstance(result, ServerUnreachable | AllocationExpired):
            self._end_lost(result)
        elif isinstance(result, RelayError):
            self._end(Failed(AllocationExpired(f"the relay could not be renewed: {result}")))
        else:
            self._refresh_at = now + (result.get(LIFETIME) or LIFETIME_S) * RENEW_AT
            self._events.extend(self._doubtful)
            self._doubtful.clear()

    def _granted(self, event: Event, now: float) -> None:
        """Tell of a permission; a refusal without a reason in the peer may mean a lost allocation.

        coturn answers 400 to a CreatePermission without one: the answer to a Refresh is clear.
        """
        error = event.error if isinstance(event, Refused) else None
        clear = error is None or isinstance(error, Forbidden | NotSupported)
        if clear or not isinstance(error, AllocationRefused):
            self._events.append(event)
        else:
            self._doubtful.append(event)
            self.probe(now)

    def _lost_in_use(self, error: RelayError, now: float) -> bool:
        """Take what a permission or channel came to; only what says nothing at all is silent."""
        heard = isinstance(error, ServerUnreachable) and self.heard > now - self._give_up_s
        if self.state is State.ALLOCATED and not heard:
            self._end_lost(error)
        return not heard

    def _end_lost(self, error: RelayError) -> None:
        if isinstance(error, ServerUnreachable):
            error = ServerSilent(f"TURN server {self.server} stopped answering; the relay is lost")
        self._end(Failed(error))

    def _on_farewell(self, _result: Message | RelayError, _now: float) -> None:
        self._end(Closed())

    def _indicated(self, message: Message) -> None:
        peer = message.get(XOR_PEER_ADDRESS)
        if message.method == DATA and peer is not None and self.state is State.ALLOCATED:
            data = message.get(DATA_ATTRIBUTE)
            if data is not None and len(self._events) < MAX_EVENTS:
                self._events.append(PeerData(peer, data))
        elif message.method == CONNECTION_ATTEMPT and peer is not None:
            number = message.get(CONNECTION_ID)
            if number is not None and len(self._events) < MAX_EVENTS:
                self._events.append(Incoming(number, peer))
        else:
            self.counters.count("turn_unexpected")

    def _end(self, event: Event) -> None:
        if self.state is not State.ENDED:
            self.state = State.ENDED
            self.requests.clear()
            self._events.append(event)
