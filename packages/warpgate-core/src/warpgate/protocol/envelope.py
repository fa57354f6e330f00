"""Signals: messages that are signed, sealed to their receiver, expire and are accepted once.

::

    envelope = version(1) HPKE(content)
    content  = signature(64) msgpack [sender, msg_id, sent_ms, ttl_s, wire_name, body]

WIRE.md section 2. HPKE is RFC 9180 in base mode, X25519-HKDF-SHA256 with ChaCha20-Poly1305; its
encapsulated key comes first. The signature covers the domain string, sender(32), receiver(32),
msg_id(16), sent_ms(8), ttl_s(4), the wire name's length(2), the wire name and the body, numbers
big-endian: only the last part has no length of its own, so no two signals have the same text.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from warpgate.errors import (
    BadSignature,
    LocalProtocolError,
    MessageTooLarge,
    RemoteProtocolError,
    StaleMessage,
)
from warpgate.identity import KEY_LENGTH, SIGNATURE_LENGTH, verify
from warpgate.protocol import strict
from warpgate.protocol.codec import MAX_WIRE_NAME_BYTES

if TYPE_CHECKING:
    from warpgate.protocol.peer_address import Signer

SIGNAL_VERSION: Final = 1
MAX_SIGNAL_BYTES: Final = 8192
MSG_ID_LENGTH: Final = 16
MAX_TTL_S: Final = 300
MAX_SENT_MS: Final = 2**48
CLOCK_TOLERANCE_S: Final = 30
MAX_REMEMBERED: Final = 32_768  # more than 50 a second (all strangers' limit) of the longest ttl

_DOMAIN: Final = b"warpgate signal v1"
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class Receiver(Protocol):
    """Who opens signals; :class:`~warpgate.identity.Identity` is one."""

    @property
    def public_key(self) -> bytes:
        """The Ed25519 public key, 32 bytes."""

    @property
    def exchange_private(self) -> X25519PrivateKey:
        """The key that signals are sealed to."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal whose signature is verified: ``sender`` (32-byte key) did send it to this node.

    ``sent_ms`` is the sender's clock in Unix milliseconds, ``ttl_s`` its life in seconds.
    """

    sender: bytes
    msg_id: bytes
    sent_ms: int
    ttl_s: int
    wire_name: str
    body: bytes


def seal_signal(
    signer: Signer,
    receiver_key: bytes,
    receiver_exchange_key: bytes,
    *,
    wire_name: str,
    body: bytes,
    sent_ms: int,
    ttl_s: int,
    msg_id: bytes,
) -> bytes:
    """Sign a message and seal it to its receiver.

    Args:
        signer: the sender's keys.
        receiver_key: the receiver's Ed25519 key, 32 bytes.
        receiver_exchange_key: the receiver's X25519 key, 32 bytes, from its signed address.
        wire_name: the message's class, up to 128 bytes.
        body: what :func:`~warpgate.protocol.codec.encode_body` made.
        sent_ms: the sender's clock, Unix milliseconds.
        ttl_s: seconds for which the message may be accepted, 1 to 300.
        msg_id: 16 random bytes, new for every message that is not a retransmission.

    Raises:
        MessageTooLarge: more than 8,192 bytes in all.
        LocalProtocolError: an argument out of range.
        RemoteProtocolError: the receiver's exchange key is unusable.

    """
    signal = Signal(signer.public_key, msg_id, sent_ms, ttl_s, wire_name, body)
    content = pack_content(signer, receiver_key, signal)
    try:
        exchange_key = X25519PublicKey.from_public_bytes(receiver_exchange_key)
        sealed = _SUITE.encrypt(content, exchange_key, info=_DOMAIN + receiver_key)
    except ValueError as error:  # not 32 bytes, or a point of small order
        raise RemoteProtocolError("the receiver's exchange key is unusable") from error
    data = bytes([SIGNAL_VERSION]) + sealed
    if len(data) > MAX_SIGNAL_BYTES:
        raise MessageTooLarge(
            f"a signal {wire_name} of {len(data)} bytes, at most {MAX_SIGNAL_BYTES} are allowed"
        )
    return data


def open_signal(identity: Receiver, data: bytes) -> Signal:
    """Open a signal that was sealed to ``identity`` and verify its signature.

    Whether it is fresh is :class:`ReplayGuard`'s question.

    Raises:
        MessageTooLarge: more than 8,192 bytes.
        BadSignature: it was not sealed to this node, or its signature is wrong.
        RemoteProtocolError: anything else that is wrong with it.

    """
    if len(data) > MAX_SIGNAL_BYTES:
        raise MessageTooLarge(f"a signal of {len(data)} bytes, at most {MAX_SIGNAL_BYTES} allowed")
    if data[:1] != bytes([SIGNAL_VERSION]):
        raise RemoteProtocolError(f"a signal of another version: {data[:1].hex() or 'empty'}")
    try:
        content = _SUITE.decrypt(
            data[1:], identity.exchange_private, info=_DOMAIN + identity.public_key
        )
    except (InvalidTag, ValueError):
        raise BadSignature("a signal that is not sealed to this node, or was altered") from None
    return unpack_content(identity.public_key, content)


def pack_content(signer: Signer, receiver_key: bytes, signal: Signal) -> bytes:
    """Return what is sealed: signature and fields; the same bytes for the same arguments.

    Raises:
        LocalProtocolError: a field out of range.

    """
    fields = [
        signal.sender,
        signal.msg_id,
        signal.sent_ms,
        signal.ttl_s,
        signal.wire_name,
        signal.body,
    ]
    try:
        strict.take_bytes(receiver_key, "receiver's key", KEY_LENGTH)
        signal = _from_fields(fields)
    except ValueError as error:
        raise LocalProtocolError(f"no signal can say this: {error}") from None
    return signer.sign(_signed(receiver_key, signal)) + strict.pack(fields)


def unpack_content(receiver_key: bytes, content: bytes) -> Signal:
    """Read what was sealed and verify the signature.

    Raises:
        BadSignature: the signature is not the sender's for this content and receiver.
        RemoteProtocolError: it is malformed.

    """
    signature, packed = content[:SIGNATURE_LENGTH], content[SIGNATURE_LENGTH:]
    try:
        signal = _from_fields(strict.take_list(strict.unpack(packed), "signal", 6))
    except ValueError as error:
        raise RemoteProtocolError(f"a malformed signal: {error}") from None
    if not verify(signal.sender, signature, _signed(receiver_key, signal)):
        raise BadSignature("a signal whose signature is not its sender's")
    return signal


def _from_fields(fields: list[object]) -> Signal:
    return Signal(
        sender=strict.take_bytes(fields[0], "sender", KEY_LENGTH),
        msg_id=strict.take_bytes(fields[1], "msg_id", MSG_ID_LENGTH),
        sent_ms=strict.take_int(fields[2], "sent_ms", MAX_SENT_MS),
        ttl_s=strict.take_int(fields[3], "ttl_s", MAX_TTL_S, 1),
        wire_name=strict.take_str(fields[4], "wire name", MAX_WIRE_NAME_BYTES),
        body=strict.take_bytes(fields[5], "body", MAX_SIGNAL_BYTES, 0),
    )


def _signed(receiver_key: bytes, signal: Signal) -> bytes:
    name = signal.wire_name.encode()
    return b"".join(
        (
            _DOMAIN,
            signal.sender,
            receiver_key,
            signal.msg_id,
            signal.sent_ms.to_bytes(8, "big"),
            signal.ttl_s.to_bytes(4, "big"),
            len(name).to_bytes(2, "big"),
            name,
            signal.body,
        )
    )


class ReplayGuard:
    """Accepts a signal once, within its time.

    It remembers a signal until its time is over. What it forgets before that, because it is full,
    are the signals that expire first, and then it accepts nothing that expires as early as those:
    forgetting never lets a replay through, it only refuses some new short-lived signals.
    """

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        """Start with nothing remembered, at most ``max_remembered`` signals at once."""
        self._max_remembered = max_remembered
        self._seen: set[bytes] = set()
        self._by_expiry: list[tuple[int, bytes]] = []  # a heap
        self._forgotten_until_ms = -1

    def __len__(self) -> int:
        """Return how many signals are remembered."""
        return len(self._seen)

    def accept(self, signal: Signal, now_ms: int) -> None:
        """Accept a signal and remember it.

        Args:
            signal: from :func:`open_signal`.
            now_ms: this node's clock, Unix milliseconds.

        Raises:
            StaleMessage: it is outside ``ttl_s`` ± 30 s of its ``sent_ms``, or was accepted
                before. Its attribute ``duplicate`` is True in the latter case, else False.

        """
        tolerance_ms = CLOCK_TOLERANCE_S * 1000
        expiry_ms = signal.sent_ms + signal.ttl_s * 1000 + tolerance_ms
        key = signal.sender + signal.msg_id  # by sender: nobody can use up another one's ids
        if key in self._seen:
            raise _stale("a signal that was accepted before", duplicate=True)
        if now_ms < signal.sent_ms - tolerance_ms:
            raise _stale(f"a signal from {(signal.sent_ms - now_ms) / 1000:.1f} s in the future")
        if now_ms > expiry_ms:
            raise _stale(f"a signal that is {(now_ms - signal.sent_ms) / 1000:.1f} s old")
        while self._by_expiry and self._by_expiry[0][0] < now_ms:
            self._forget_first()
        full = len(self._seen) >= self._max_remembered
        earliest_ms = self._by_expiry[0][0] if full else self._forgotten_until_ms
        if expiry_ms <= max(earliest_ms, self._forgotten_until_ms):
            raise _stale("a signal too short-lived to tell from a replay while so many come in")
        if full:
            self._forget_first()
        self._seen.add(key)
        heapq.heappush(self._by_expiry, (expiry_ms, key))

    def _forget_first(self) -> None:
        expiry_ms, key = heapq.heappop(self._by_expiry)
        self._seen.discard(key)
        # This also holds when the clock is set back: what was forgotten stays refused.
        self._forgotten_until_ms = max(self._forgotten_until_ms, expiry_ms)


def _stale(text: str, *, duplicate: bool = False) -> StaleMessage:
    error = StaleMessage(text)
    error.duplicate = duplicate
    return error
