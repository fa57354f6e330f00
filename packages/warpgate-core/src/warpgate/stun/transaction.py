"""A volley of STUN requests from one socket, without the socket; PURE.

Several servers are asked at once; the first answer decides, the others get a short grace. Answers
count only when transaction id, source and form are right; everything else is counted, and data
that has nothing to do with the volley is left to its owner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import BadSignature, MessageTooLarge, RemoteProtocolError
from ..events import Counters
from .attributes import (
    ALTERNATE_SERVER,
    ATTRIBUTES,
    CHANGE_REQUEST,
    ERROR_CODE,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    SOFTWARE,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    Address,
    Attribute,
    ErrorCode,
)
from .message import (
    BINDING,
    TRANSACTION_ID_BYTES,
    Message,
    MessageClass,
    decode,
    encode,
    looks_like_stun,
    transaction_id_of,
)

RTO_S: Final = 0.5  # RFC 8489 section 6.2.1
RETRANSMISSIONS: Final = 7  # Rc, the first one counted
LAST_WAIT: Final = 16  # Rm, in RTO
GRACE_S: Final = 0.05
MAX_TRANSACTIONS: Final = 64  # of one volley


@dataclass(slots=True)
class Transaction:
    """One request, and what became of it.

    Attributes:
        server: where it went.
        change: the flags of CHANGE-REQUEST; an answer may then come from elsewhere.
        started: when it was sent first, in seconds.
        sent: how often it was sent.
        rtt_s: from the latest request before the answer to the answer; None before that.
        mapped: the server's view of this socket; None without a success response.
        source: where the answer came from.
        other_address: where an RFC 5780 server has its second address.
        software: what the server calls itself, printable.
        error: an error response, or what was wrong with the answer.
        alternate_server: where the server sends us instead; reported, never followed.
        over: nothing is waited for any more.

    """

    server: Address
    transaction_id: bytes
    change: int = 0
    started: float = 0.0
    sent: int = 0
    rtt_s: float | None = None
    mapped: Address | None = None
    source: Address | None = None
    other_address: Address | None = None
    software: str = ""
    error: str = ""
    error_code: ErrorCode | None = None
    alternate_server: Address | None = None
    over: bool = False
    _next: float = field(default=0.0, repr=False)
    _last: float = field(default=0.0, repr=False)


class Volley:
    """The transactions of one socket.

    Args:
        entropy: ``entropy(n)`` returns n random bytes.
        rto_s: the first retransmission comes after this, the next ones after twice the time each.
        retransmissions: how often a request is sent at most.
        last_wait: how long the last one is waited for, in RTO.
        grace_s: how long others are waited for after the first answer.
        reliable: over a stream: sent once (RFC 8489 section 6.2.2).
        counters: counts what was ignored, as ``stun-…``.
        table: the attributes that are understood.

    """

    def __init__(
        self,
        *,
        entropy: Callable[[int], bytes],
        rto_s: float = RTO_S,
        retransmissions: int = RETRANSMISSIONS,
        last_wait: float = LAST_WAIT,
        grace_s: float = GRACE_S,
        reliable: bool = False,
        counters: Counters | None = None,
        table: Mapping[int, Attribute] = ATTRIBUTES,
    ) -> None:
        self.rto_s = rto_s
        self.counters = Counters() if counters is None else counters
        self.transactions: list[Transaction] = []
        self._entropy = entropy
        self._retransmissions = 1 if reliable else retransmissions
        self._last_wait = last_wait
        self._grace_s = grace_s
        self._table = table
        self._by_id: dict[bytes, Transaction] = {}
        self._first_answer: float | None = None

    def ask(self, server: Address, now: float, change: int = 0) -> Transaction:
        """Add a Binding request to a server.

        Args:
            server: ``(ip, port)``, the ip as the system writes it.
            now: the time, in seconds.
            change: ``CHANGE_IP | CHANGE_PORT``: from where the server shall answer (RFC 5780).

        Raises:
            ValueError: there are ``MAX_TRANSACTIONS`` already.

        """
        if len(self.transactions) >= MAX_TRANSACTIONS:
            raise ValueError(f"a volley has at most {MAX_TRANSACTIONS} transactions")
        made = Transaction(server, self._entropy(TRANSACTION_ID_BYTES), change, now)
        made._next = now  # noqa: SLF001  # a volley's own record
        self.transactions.append(made)
        self._by_id[made.transaction_id] = made
        return made

    @property
    def answers(self) -> list[Transaction]:
        """The transactions with a mapped address, the quickest first."""
        found = [each for each in self.transactions if each.mapped is not None]
        return sorted(found, key=lambda each: each._last)  # noqa: SLF001

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """Return what is due now, and end what has been waited for long enough."""
        due: list[tuple[bytes, Address]] = []
        for each in self.transactions:
            if each.over or each._next > now:  # noqa: SLF001
                continue
            if each.sent >= self._retransmissions:
                each.over = True
                each.error = each.error or "no answer"
                continue
            each.sent += 1
            each._last = now  # noqa: SLF001
            final = each.sent >= self._retransmissions
            factor = self._last_wait if final else 2 ** (each.sent - 1)
            each._next = now + self.rto_s * factor  # noqa: SLF001
            due.append((self._request(each), each.server))
        return due

    def timer(self) -> float | None:
        """Return when :meth:`datagrams_to_send` is to be called next; None: never."""
        return min((each._next for each in self.transactions if not each.over), default=None)  # noqa: SLF001

    def finished(self, now: float) -> bool:
        """Return whether all is answered or given up, or the grace after the first answer is over."""
        return self.finish_at() <= now

    def finish_at(self) -> float:
        """Return when :meth:`finished` becomes true by itself; infinite before the first answer."""
        if all(each.over for each in self.transactions):
            return float("-inf")
        if self._first_answer is None:
            return float("inf")
        return self._first_answer + self._grace_s

    def receive(self, data: bytes, source: Address, now: float) -> bool:
        """Look at a datagram.

        Returns:
            True when it belongs to the volley: an answer, or something to be ignored that bears
            one of its transaction ids. False: it is someone else's and must be handed on.

        """
        if not looks_like_stun(data):
            return False
        transaction = self._by_id.get(transaction_id_of(data))
        if transaction is None:
            return False
        try:
            message = decode(data, self._table)
        except MessageTooLarge:
            self.counters.count("stun-oversized")
        except BadSignature:
            self.counters.count("stun-bad-fingerprint")
        except RemoteProtocolError:
            self.counters.count("stun-malformed")
        else:
            self._take(transaction, message, source, now)
        return True

    def _take(self, it: Transaction, message: Message, source: Address, now: float) -> None:
        if message.message_class in (MessageClass.REQUEST, MessageClass.INDICATION):
            self.counters.count("stun-reflected")
        elif message.method != BINDING:
            self.counters.count("stun-wrong-method")
        elif source != it.server and not it.change:
            self.counters.count("stun-wrong-source")
        elif it.over:
            self.counters.count("stun-duplicate")
        elif message.unknown_required:
            numbers = ", ".join(f"0x{number:04x}" for number in message.unknown_required[:4])
            self._settle(it, source, now, f"the answer needs unknown attributes {numbers}")
        elif message.message_class == MessageClass.ERROR:
            it.error_code = message.get(ERROR_CODE) or ErrorCode(500, "without an ERROR-CODE")
            it.alternate_server = message.get(ALTERNATE_SERVER)
            self._settle(it, source, now, _explain(it.error_code, message))
        else:
            mapped = message.get(XOR_MAPPED_ADDRESS) or message.get(MAPPED_ADDRESS)
            if mapped is None or not mapped[1]:
                self._settle(it, source, now, "the answer names no mapped address")
                return
            it.mapped = mapped
            it.other_address = message.get(OTHER_ADDRESS)
            it.software = printable(message.get(SOFTWARE) or "")
            if self._first_answer is None:
                self._first_answer = now
            self._settle(it, source, now, "")

    def _settle(self, it: Transaction, source: Address, now: float, error: str) -> None:
        it.over = True
        it.source = source
        it.rtt_s = now - it._last  # noqa: SLF001
        it._last = now  # noqa: SLF001
        it.error = error

    def _request(self, it: Transaction) -> bytes:
        wanted: list[tuple[int, Any]] = [(CHANGE_REQUEST, it.change)] if it.change else []
        # Without FINGERPRINT: some old servers answer nothing that has one.
        return encode(BINDING, MessageClass.REQUEST, it.transaction_id, wanted, fingerprint=False)


def _explain(code: ErrorCode, message: Message) -> str:
    unknown = message.get(UNKNOWN_ATTRIBUTES) or ()
    about = f" ({', '.join(f'0x{number:04x}' for number in unknown[:4])})" if unknown else ""
    return f"error {code.code} {printable(code.reason)}".rstrip() + about


def printable(text: str) -> str:
    """Return a server's words, shortened and without what a terminal would obey."""
    return "".join(char for char in text[:80] if char.isprintable())
