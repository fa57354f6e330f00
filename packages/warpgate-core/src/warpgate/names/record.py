"""Name records: who says that a name is theirs, and at which address (WIRE.md section 6). PURE.

::

    record = signature(64) msgpack [version, name, key, address, sequence, expires_s]

The signature is Ed25519 by ``key`` over the domain string and the packed bytes. ``address`` is the
key's own signed address. Elements beyond these are signed and ignored: they are for the future.

A record is retained on ``wg/1/n/<H(name)>/<fingerprint>``, where both parts are the base32, in lower
case and without padding, of the first 20 bytes of SHA-256: of the name in UTF-8, and of the key. So
every key has a topic of its own under a name, and whoever knows the key needs no wildcard.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from warpgate.errors import (
    BadSignature,
    ConfigError,
    InvalidAddressError,
    MessageTooLarge,
    RemoteProtocolError,
)
from warpgate.identity import KEY_LENGTH, SIGNATURE_LENGTH, verify
from warpgate.protocol import strict
from warpgate.protocol.peer_address import (
    MAX_ADDRESS_BYTES,
    MAX_SEQUENCE,
    PeerAddress,
    unpack_address,
)
from warpgate.signalling.broker_policy import topic_hash

if TYPE_CHECKING:
    from warpgate.protocol.peer_address import Signer

RECORD_VERSION: Final = 1
MAX_NAME_BYTES: Final = 255
MAX_RECORD_BYTES: Final = 3072
MAX_EXPIRES_S: Final = 2**40
NAMES_PREFIX: Final = "wg/1/n/"

_DOMAIN: Final = b"warpgate name v1"


@dataclass(frozen=True, slots=True)
class NameRecord:
    """A verified record: the holder of ``key`` claims ``name`` until ``expires_s`` (Unix seconds).

    ``address`` is the key's verified address; of two records of a key the one with the higher
    ``sequence`` holds. ``raw`` is the signed bytes.
    """

    name: str
    key: bytes
    address: PeerAddress
    sequence: int
    expires_s: int
    raw: bytes


def normal_name(name: str) -> str:
    """Return a name in the form that is hashed and signed: Unicode NFC, no surrounding spaces."""
    return unicodedata.normalize("NFC", name).strip()


def name_filter(name: str) -> str:
    """Return the topic filter for every record of a name."""
    return f"{NAMES_PREFIX}{topic_hash(normal_name(name).encode())}/+"


def name_topic(name: str, key: bytes) -> str:
    """Return the topic of a key's record of a name; ``key`` is the 32-byte public key."""
    return f"{NAMES_PREFIX}{topic_hash(normal_name(name).encode())}/{topic_hash(key)}"


def pack_record(
    signer: Signer, *, name: str, address: PeerAddress, sequence: int, expires_s: int
) -> NameRecord:
    """Make and sign a record.

    Args:
        signer: the node's keys.
        name: up to 255 bytes of UTF-8, printable.
        address: the node's own signed address.
        sequence: grows with every record of this name.
        expires_s: until when it is good, Unix seconds.

    Raises:
        ConfigError: a value that no record can hold.

    """
    name = normal_name(name)
    fields: list[object] = [
        RECORD_VERSION,
        name,
        signer.public_key,
        address.raw,
        sequence,
        expires_s,
    ]
    try:
        _check(fields)
        if address.key != signer.public_key:
            raise ValueError("the address is another node's")
    except ValueError as error:
        raise ConfigError(f"no name record can say this: {error}") from None
    body = strict.pack(fields)
    raw = signer.sign(_DOMAIN + body) + body
    return NameRecord(name, signer.public_key, address, sequence, expires_s, raw)


def unpack_record(data: bytes) -> NameRecord:
    """Read a record and verify its signature and its address; freshness is the caller's question.

    Raises:
        MessageTooLarge: more than 3,072 bytes.
        BadSignature: a signature that is not the key's.
        RemoteProtocolError: anything else that is wrong with it.

    """
    if len(data) > MAX_RECORD_BYTES:
        raise MessageTooLarge(f"a name record of {len(data)} bytes, over {MAX_RECORD_BYTES}")
    signature, body = data[:SIGNATURE_LENGTH], data[SIGNATURE_LENGTH:]
    try:
        fields = strict.take_list(strict.unpack(body), "name record", 6)
        name, key, packed, sequence, expires_s = _check(fields)
    except ValueError as error:
        raise RemoteProtocolError(f"a malformed name record: {error}") from None
    if not verify(key, signature, _DOMAIN + body):
        raise BadSignature("a name record whose signature is not its key's")
    try:
        address = unpack_address(packed)
    except InvalidAddressError as error:
        raise RemoteProtocolError(f"a name record: {error}") from None
    if address.key != key:
        raise RemoteProtocolError("a name record with another node's address")
    return NameRecord(name, key, address, sequence, expires_s, bytes(data))


def _check(fields: list[object]) -> tuple[str, bytes, bytes, int, int]:
    if fields[0] != RECORD_VERSION or type(fields[0]) is not int:
        raise ValueError(f"version {fields[0]!r}, this side reads {RECORD_VERSION}")
    name = fields[1]
    if not isinstance(name, str) or not 0 < len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES:
        raise ValueError(f"the name is not text of 1 to {MAX_NAME_BYTES} bytes")
    if not name.isprintable() or name != normal_name(name):
        raise ValueError("the name is not printable, or not in normal form")
    return (
        name,
        strict.take_bytes(fields[2], "key", KEY_LENGTH),
        strict.take_bytes(fields[3], "address", MAX_ADDRESS_BYTES, 1),
        strict.take_int(fields[4], "sequence", MAX_SEQUENCE),
        strict.take_int(fields[5], "expiry", MAX_EXPIRES_S),
    )
