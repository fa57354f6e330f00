"""Sealed records (WIRE.md section 1): what a proven pipe's bytes look like when nobody else may read them.

::

    stream    kind(1) ‖ size(3) ‖ AEAD(size bytes) ‖ tag(16)      kind 0 data, 1 close, 2 key update
    datagram  kind(1) ‖ number(8) ‖ AEAD ‖ tag(16)                kind 0 data, 1 control

A number's upper half is the key's generation, its lower half counts the records under that key; a
stream's records are numbered without saying so. What stands in clear is part of the nonce and so
protected too: ``kind ‖ size ‖ number`` and ``00 00 00 ‖ kind ‖ number``. The AEAD, without further
associated data, is ChaCha20-Poly1305 (RFC 8439) or AES-256-GCM (NIST SP 800-38D).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import count, repeat
from typing import TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from warpgate.errors import BadSignature, MessageTooLarge, RemoteProtocolError, UnknownMessage
from warpgate.hello.keys import updated_seal_key
from warpgate.hello.seal import AES_256_GCM

TAG_SIZE = 16
MAX_RECORD = 1 << 16  # bytes of the user in one record of a stream
STREAM_OVERHEAD = 4 + TAG_SIZE
DATAGRAM_OVERHEAD = 9 + TAG_SIZE
# Bytes of a stream that wait to be opened: some records, so that a read can fetch more than one.
RECORD_BUFFER = 4 * MAX_RECORD

DATA = 0
CLOSE = 1
UPDATE = 2

# A key is good for so much: far below what both ciphers allow (RFC 8446, section 5.5; RFC 9147).
MAX_RECORDS_PER_KEY = 1 << 32
MAX_BYTES_PER_KEY = 64 << 30
MAX_DATAGRAMS_PER_KEY = 1 << 20  # of whatever size, at most 64 KiB

# So many keys may pass without a datagram that arrives; a fast sender uses one up in seconds.
MAX_KEYS_AHEAD = 8

REPLAY_WINDOW = 1024
_WINDOW_MASK = (1 << REPLAY_WINDOW) - 1

Buffer: TypeAlias = bytes | memoryview

_HEADER = struct.Struct(">I")
_NONCE = struct.Struct(">IQ")
_DATAGRAM = struct.Struct(">3xBQ")
_NUMBER = struct.Struct(">Q")
_PADDING = bytes(3)  # of a datagram's nonce


class _Key:
    """One direction's key of one generation; ``number`` is the next record's."""

    __slots__ = ("_cipher", "_records", "_secret", "decrypt", "encrypt", "end", "last", "number")

    def __init__(self, cipher: str, secret: bytes, records: int, generation: int = 0) -> None:
        self._cipher = cipher
        self._secret = secret
        self._records = records
        aead = AESGCM(secret) if cipher == AES_256_GCM else ChaCha20Poly1305(secret)
        self.encrypt: Callable[[bytes, Buffer, None], bytes] = aead.encrypt
        self.decrypt: Callable[[bytes, Buffer, None], bytes] = aead.decrypt
        self.number = generation << 32
        self.last = self.number + records - 1  # the last number that this key is used for
        self.end = self.number + 0xFFFFFFFF  # the last one of its generation

    def updated(self) -> _Key:
        """Return the next generation's; this one can't be computed from it."""
        secret = updated_seal_key(self._secret)
        return _Key(self._cipher, secret, self._records, (self.end >> 32) + 1)


class _Seal:
    """Both directions' keys."""

    max_records = MAX_RECORDS_PER_KEY

    def __init__(self, cipher: str, outgoing: bytes, incoming: bytes) -> None:
        """Take the cipher's name and two keys of 32 bytes."""
        self._out = _Key(cipher, outgoing, self.max_records)
        self._in = _Key(cipher, incoming, self.max_records)


class StreamSeal(_Seal):
    """Seals and opens a stream: a pipe's filter that reads into a buffer of its own.

    A record that does not verify is the end of the stream, and so is one that is out of order,
    repeated or left out, since then its number is wrong.

    Attributes:
        ended: whether the peer has said that nothing more comes; an end without it was not its own.

    """

    overhead = STREAM_OVERHEAD
    max_bytes = MAX_BYTES_PER_KEY
    ended = False
    _buffer: memoryview | None = None
    _start = 0
    _end = 0
    _sent = 0  # bytes under the outgoing key

    def encode(self, data: bytes) -> bytes:
        """Return the records that carry ``data``."""
        size = len(data)
        if size <= MAX_RECORD:
            return self._record(DATA, data) if size else b""
        view = memoryview(data)
        return b"".join(
            self._record(DATA, view[start : start + MAX_RECORD])
            for start in range(0, size, MAX_RECORD)
        )

    def farewell(self) -> bytes:
        """Return the record that says that nothing more comes."""
        return self._record(CLOSE, b"")

    def buffer(self) -> memoryview:
        """Return where the stream's next bytes go, at least a record's worth of room."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(RECORD_BUFFER))
        start, end = self._start, self._end
        if start == end:
            self._start = self._end = 0
        elif RECORD_BUFFER - end < MAX_RECORD + STREAM_OVERHEAD:
            self._buffer[: end - start] = self._buffer[start:end]
            self._start, self._end = 0, end - start
        return self._buffer[self._end :]

    def filled(self, count: int) -> Iterator[bytes]:
        """Yield the user's bytes now that ``count`` more are in the buffer.

        Raises:
            RemoteProtocolError: a record can't be the peer's next one.

        """
        buffer = self._buffer
        if buffer is None:
            return
        self._end += count
        while self._end - self._start >= _HEADER.size:
            start = self._start
            body = start + _HEADER.size
            (head,) = _HEADER.unpack_from(buffer, start)
            kind, size = head >> 24, head & 0xFFFFFF
            if size > MAX_RECORD:
                raise MessageTooLarge(f"a sealed record of {size} bytes; at most {MAX_RECORD}")
            stop = body + size + TAG_SIZE
            if stop > self._end:
                return
            key = self._in
            try:
                plain = key.decrypt(_NONCE.pack(head, key.number), buffer[body:stop], None)
            except InvalidTag:
                raise BadSignature("a sealed record does not verify") from None
            key.number += 1
            self._start = stop
            if self.ended:
                raise RemoteProtocolError("a sealed record after the one that closes")
            if kind == DATA:
                if plain:
                    yield plain
            else:
                self._control(kind)

    def decode(self, data: bytes, addr: object) -> Iterator[bytes]:
        """Yield the user's bytes in what came from the wire past the buffer; cut anywhere.

        Raises:
            RemoteProtocolError: as :meth:`filled`.

        """
        view = memoryview(data)
        while view:
            room = self.buffer()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            yield from self.filled(count)
            view = view[count:]

    def _control(self, kind: int) -> None:
        if kind == CLOSE:
            self.ended = True
        elif kind == UPDATE:
            self._in = self._in.updated()
        else:
            raise UnknownMessage(f"a sealed record of kind {kind}")

    def _record(self, kind: int, data: bytes | memoryview) -> bytes:
        key = self._out
        # A generation's last record announces the next one; the farewell needs no further one.
        if (key.number >= key.last or self._sent >= self.max_bytes) and kind == DATA:
            update = self._sealed(UPDATE, b"")
            self._out, self._sent = key.updated(), 0
            return update + self._sealed(kind, data)
        return self._sealed(kind, data)

    def _sealed(self, kind: int, data: bytes | memoryview) -> bytes:
        key, size = self._out, len(data)
        nonce = _NONCE.pack(kind << 24 | size, key.number)
        key.number += 1
        self._sent += size
        return nonce[: _HEADER.size] + key.encrypt(nonce, data, None)


class DatagramSeal(_Seal):
    """Seals and opens datagrams, each by itself: they may be lost, reordered or repeated.

    Nearly always the next one is data with the number that follows. Its nonce is ready then, since
    counting and packing would cost more than the cipher.
    """

    overhead = DATAGRAM_OVERHEAD
    max_records = MAX_DATAGRAMS_PER_KEY
    _nonce: bytes  # of the expected datagram
    _head: bytes  # with which it begins
    _seen = _WINDOW_MASK  # bit n: the number 1 + n below the expected one can't come any more

    def __init__(self, cipher: str, outgoing: bytes, incoming: bytes) -> None:
        """Take the cipher's name and two keys of 32 bytes."""
        super().__init__(cipher, outgoing, incoming)
        self._ahead: list[_Key] = []  # keys that follow the incoming one
        self._send_from(self._out.number)
        self._expect(self._in.number)

    def seal(self, data: bytes, kind: int = DATA) -> bytes:
        """Return the datagram of a kind, 0 or 1, that carries ``data``."""
        nonce = next(self._nonces, None)
        if nonce is None:  # nobody needs to be told of the next key: the number says it
            self._out = self._out.updated()
            self._send_from(self._out.number)
            nonce = next(self._nonces)
        if kind != DATA:
            nonce = _PADDING + bytes((kind,)) + nonce[4:]
        return nonce[3:] + self._encrypt(nonce, data, None)

    def open(self, data: bytes) -> bytes | None:
        """Return what a datagram carries, or None: altered, forged, repeated or too old."""
        if data[:9] != self._head:
            return self._open_other(data)
        try:
            plain = self._decrypt(self._nonce, data[9:], None)
        except InvalidTag:
            return self._open_other(data)  # the first one under the next key?
        self._nonce = nonce = next(self._coming)
        self._head = nonce[3:]
        if self._seen is not _WINDOW_MASK:
            self._slide(1)
        return plain

    def _open_other(self, data: bytes) -> bytes | None:
        """Open what comes after a loss, late, repeated, under the next key, or is no data."""
        if len(data) < DATAGRAM_OVERHEAD:
            return None
        (number,), (expected,) = _NUMBER.unpack_from(data, 1), _NUMBER.unpack_from(self._head, 1)
        ahead = number + 1 - expected
        if ahead <= -REPLAY_WINDOW or (ahead <= 0 and self._seen >> -ahead & 1):
            return None
        key = self._in
        steps = (number >> 32) - (key.end >> 32)
        if not 0 <= steps <= MAX_KEYS_AHEAD:
            return None
        if steps:
            while len(self._ahead) < steps:  # kept: forged numbers cost no derivation each
                self._ahead.append((self._ahead[-1] if self._ahead else key).updated())
            key = self._ahead[steps - 1]
        try:
            plain = key.decrypt(_PADDING + data[:9], data[9:], None)
        except InvalidTag:
            return None
        if steps:
            self._in = key
            del self._ahead[:steps]
        if ahead > 0:
            self._slide(ahead)
            self._expect(number + 1)
        else:
            self._seen |= 1 << -ahead
        return plain

    def _send_from(self, number: int) -> None:
        self._encrypt = self._out.encrypt
        numbers = range(number, self._out.last + 1)
        self._nonces: Iterator[bytes] = map(_DATAGRAM.pack, repeat(DATA), numbers)

    def _expect(self, number: int) -> None:
        self._decrypt = self._in.decrypt
        self._coming: Iterator[bytes] = map(_DATAGRAM.pack, repeat(DATA), count(number))
        self._nonce = next(self._coming)
        self._head = self._nonce[3:]

    def _slide(self, ahead: int) -> None:
        seen = (self._seen << ahead | 1) & _WINDOW_MASK if ahead < REPLAY_WINDOW else 1
        # One object for the usual case, which open() looks for.
        self._seen = _WINDOW_MASK if seen == _WINDOW_MASK else seen
