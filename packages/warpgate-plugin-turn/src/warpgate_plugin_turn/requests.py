"""Requests to one TURN server: retransmission, long-term credentials, nonces; PURE.

RFC 8489 sections 6.2, 9.2 and 14; RFC 8656 section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from warpgate.errors import BadSignature, MessageTooLarge, RelayError, RemoteProtocolError
from warpgate.events import Counters
from warpgate.stun.attributes import (
    ALTERNATE_SERVER,
    ERROR_CODE,
    NONCE,
    REALM,
    USERNAME,
    ErrorCode,
)
from warpgate.stun.message import (
    TRANSACTION_ID_BYTES,
    Message,
    MessageClass,
    decode,
    encode,
    long_term_key,
)
from warpgate_plugin_turn.errors import Redirected, ServerUnreachable, error_for
from warpgate_plugin_turn.wire import TURN_ATTRIBUTES

RTO_S: Final = 0.25
MAX_RTO_S: Final = 1.0
GIVE_UP_S: Final = 3.0
MAX_REQUESTS: Final = 64  # under way at once
MAX_CHALLENGES: Final = 3  # 401 and 438 in a row, for one request


@dataclass(slots=True)
class Request:
    """One request, over all its transactions.

    Attributes:
        method: the STUN method.
        doing: its name, for texts.
        attributes: without the credentials.
        done: called with the response, or with what went wrong.

    """

    method: int
    doing: str
    attributes: list[tuple[int, Any]]
    done: Callable[[Message | RelayError, float], None]
    transaction_id: bytes = b""
    challenges: int = 0
    authenticated: bool = False
    wire: bytes = field(default=b"", repr=False)
    next_at: float = 0.0
    interval_s: float = RTO_S
    give_up_at: float = 0.0


class Requests:
    """The requests that are under way on one connection to a server.

    Args:
        username: of the long-term credentials.
        password: likewise.
        server: the server's name, for texts.
        reliable: a stream: nothing is sent twice.
        entropy: ``entropy(n)`` returns n random bytes.
        give_up_s: how long an answer is waited for.
        counters: counts what was ignored, as ``turn_…``.

    """

    def __init__(
        self,
        *,
        username: str,
        password: str,
        server: str,
        reliable: bool,
        entropy: Callable[[int], bytes],
        give_up_s: float = GIVE_UP_S,
        counters: Counters,
    ) -> None:
        self.server = server
        self.counters = counters
        self.answered = False  # the server has said something
        self.out: list[bytes] = []
        self._username = username
        self._password = password
        self._reliable = reliable
        self._entropy = entropy
        self._give_up_s = give_up_s
        self._realm: str | None = None
        self._nonce: str | None = None
        self._key: bytes | None = None
        self._pending: dict[bytes, Request] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def ask(
        self,
        method: int,
        doing: str,
        attributes: list[tuple[int, Any]],
        done: Callable[[Message | RelayError, float], None],
        now: float,
    ) -> None:
        """Send a request; ``done(response or error, now)`` is called once."""
        request = Request(method, doing, attributes, done)
        if len(self._pending) >= MAX_REQUESTS:
            done(RelayError(f"more than {MAX_REQUESTS} requests to TURN server {self.server}"), now)
            return
        self._begin(request, now)

    def beside(self) -> Requests:
        """Return those of another connection to the server, which knows realm and nonce already."""
        other = Requests(
            username=self._username, password=self._password, server=self.server, reliable=True,
            entropy=self._entropy, give_up_s=self._give_up_s, counters=self.counters,
        )  # fmt: skip
        other._realm, other._nonce, other._key = self._realm, self._nonce, self._key
        return other

    @property
    def committed(self) -> bool:
        """Whether a request is under way that the server may grant: one with credentials."""
        return any(each.authenticated for each in self._pending.values())

    def no_further_tries(self) -> None:
        """Let what is under way be answered, but not be asked again with another nonce."""
        for request in self._pending.values():
            request.challenges = MAX_CHALLENGES

    def clear(self) -> None:
        """Forget all requests without a word."""
        self._pending.clear()

    def next_timeout(self) -> float | None:
        """Return when :meth:`handle_timeout` is to be called; None: never."""
        return min((each.next_at for each in self._pending.values()), default=None)

    def handle_timeout(self, now: float) -> None:
        """Send again what is due, and give up what has been waited for long enough."""
        for request in list(self._pending.values()):
            if request.next_at > now or request.transaction_id not in self._pending:
                continue
            if now >= request.give_up_at:
                del self._pending[request.transaction_id]
                waited = f"{self._give_up_s:g} s"
                request.done(
                    ServerUnreachable(
                        f"TURN server {self.server} did not answer within {waited} "
                        f"({request.doing}); is it running, and does a firewall let it through?"
                    ),
                    now,
                )
                continue
            if not self._reliable:
                self.out.append(request.wire)
                request.interval_s = min(request.interval_s * 2, MAX_RTO_S)
            self._schedule(request, now)

    def read(self, data: bytes) -> Message | None:
        """Read a STUN message; None and a count when it is none."""
        try:
            return decode(data, TURN_ATTRIBUTES)
        except MessageTooLarge:
            self.counters.count("turn_oversized")
        except BadSignature:
            self.counters.count("turn_bad_fingerprint")
        except RemoteProtocolError:
            self.counters.count("turn_malformed")
        return None

    def respond(self, message: Message, now: float) -> None:
        """Take a success or error response."""
        request = self._pending.get(message.transaction_id)
        if request is None:
            self.counters.count("turn_unexpected")
        elif message.method != request.method:
            self.counters.count("turn_wrong_method")
        elif message.unknown_required:
            self.counters.count("turn_unknown_attributes")
        elif message.message_class == MessageClass.SUCCESS:
            if not self._genuine(message, request):
                self.counters.count("turn_unauthenticated")
                return
            self.answered = True
            del self._pending[request.transaction_id]
            request.done(message, now)
        else:
            self._refused(request, message, now)

    def _genuine(self, message: Message, request: Request) -> bool:
        return request.authenticated and self._key is not None and message.authenticated(self._key)

    def _refused(self, request: Request, message: Message, now: float) -> None:
        code = message.get(ERROR_CODE) or ErrorCode(500, "without an ERROR-CODE")
        realm, nonce = message.get(REALM), message.get(NONCE)
        if request.authenticated and not self._genuine(message, request):
            # RFC 8489 section 9.2.5: only what can't be signed may be unsigned.
            unsigned = code.code in (400, 401, 438) and not _signed(message)
            if not unsigned:
                self.counters.count("turn_unauthenticated")
                return
        self.answered = True
        del self._pending[request.transaction_id]
        again = code.code == 438 or (code.code == 401 and not request.authenticated)
        if again and nonce is not None and (realm or self._realm) is not None:
            request.challenges += 1
            if request.challenges <= MAX_CHALLENGES:
                self._challenged(realm or self._realm, nonce)
                self._begin(request, now)
                return
        if code.code == 300:
            alternate = message.get(ALTERNATE_SERVER)
            where = f"to {alternate[0]} port {alternate[1]}" if alternate else "elsewhere"
            error: RelayError = Redirected(
                f"TURN server {self.server} sends its clients {where}", alternate
            )
        else:
            error = error_for(code, self.server, request.doing)
        request.done(error, now)

    def _challenged(self, realm: str | None, nonce: str) -> None:
        assert realm is not None
        self._nonce = nonce
        if realm != self._realm:
            self._realm = realm
            self._key = long_term_key(self._username, realm, self._password)

    def _begin(self, request: Request, now: float) -> None:
        request.transaction_id = self._entropy(TRANSACTION_ID_BYTES)
        attributes = list(request.attributes)
        request.authenticated = self._key is not None
        if request.authenticated:
            attributes += [(USERNAME, self._username), (REALM, self._realm), (NONCE, self._nonce)]
        request.wire = encode(
            request.method,
            MessageClass.REQUEST,
            request.transaction_id,
            attributes,
            key=self._key,
            table=TURN_ATTRIBUTES,
        )
        request.interval_s = RTO_S
        request.give_up_at = now + self._give_up_s
        self._pending[request.transaction_id] = request
        self.out.append(request.wire)
        self._schedule(request, now)

    def _schedule(self, request: Request, now: float) -> None:
        wait = self._give_up_s if self._reliable else request.interval_s
        request.next_at = min(now + wait, request.give_up_at)


def _signed(message: Message) -> bool:
    from warpgate.stun.attributes import MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256

    return any(message.get(n) is not None for n in (MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256))
