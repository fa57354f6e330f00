"""The fields of M0 to M3: msgpack by position, every size capped before and after decoding.

::

    M0  [plugin_id]
    M1  [version, plugin_id, id_I, id_R, nonce_I, x25519_I, [capability, …], padding]
    M2  [version, plugin_id, id_R, id_I, nonce_R, x25519_R, [capability, …]] ‖ sig_R (the last 64 bytes)
    M3  sig_I

Ids, nonces and shares are 32 bytes; ``padding`` stands in datagrams only, zeros up to
``DATAGRAM_SIZE`` in all. Elements after the known ones are ignored; both signatures cover them.
The names of ``wire`` are importable from here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack

from warpgate.errors import LocalProtocolError, MessageTooLarge, RemoteProtocolError, UnknownMessage
from warpgate.hello.wire import (
    M0,
    M1,
    M2,
    M3,
    MAGIC_SIZE,
    MAX_HELLO_BODY,
    MAX_SIGNAL_BODY,
    PREFIX,
    PROBE,
    SIGNAL,
    Deframer,
    frame,
    kind_name,
    looks_like_magic,
    message,
    parse_datagram,
)
from warpgate.protocol.con_id import valid_plugin_id

__all__ = [
    "DATAGRAM_SIZE",
    "KEY_SIZE",
    "M0",
    "M1",
    "M2",
    "M3",
    "MAGIC_SIZE",
    "MAX_CAPABILITIES",
    "MAX_CAPABILITY_BYTES",
    "MAX_HELLO_BODY",
    "MAX_SIGNAL_BODY",
    "PREFIX",
    "PROBE",
    "SIGNAL",
    "VERSION",
    "Deframer",
    "HelloFields",
    "frame",
    "kind_name",
    "looks_like_magic",
    "message",
    "pack_m0",
    "pack_m1",
    "pack_m2",
    "parse_datagram",
    "unpack_m0",
    "unpack_m1",
    "unpack_m2",
    "unpack_m3",
]

VERSION = 1
KEY_SIZE = 32
SIGNATURE_SIZE = 64
MAX_CAPABILITIES = 16
MAX_CAPABILITY_BYTES = 16
# Every M1 datagram has this size, magic included, and no M2 datagram is larger: the greatest packet
# that may go to an address which has not answered yet (WIRE.md section 5).
DATAGRAM_SIZE = 300

_FIELDS = 7
_MAX_ELEMENTS = 32  # msgpack allocates an array at its announced length


@dataclass(frozen=True, slots=True)
class HelloFields:
    """What M1 and M2 have in common; ``sender`` is the initiator in M1, the responder in M2.

    ``sender``, ``receiver`` are Ed25519 keys, ``share`` an X25519 key, ``nonce`` random; 32 bytes each.
    """

    plugin_id: str
    sender: bytes
    receiver: bytes
    nonce: bytes
    share: bytes
    capabilities: tuple[str, ...] = ()
    version: int = VERSION


def pack_m0(plugin_id: str) -> bytes:
    """Return M0's body: the id of the attempt that a dialled listening socket waits for."""
    return _pack([plugin_id])


def pack_m1(fields: HelloFields, *, datagram: bool) -> bytes:
    """Return M1's body, for a datagram padded so that ``magic ‖ body`` has ``DATAGRAM_SIZE`` bytes.

    Raises:
        LocalProtocolError: the capabilities exceed their caps or leave no room in a datagram.

    """
    elements = _elements(fields)
    body = _pack(elements)
    if not datagram:
        return body
    _check_datagram(body)
    header = 2  # of a byte string below 256 bytes
    padding = DATAGRAM_SIZE - MAGIC_SIZE - len(body) - header
    return _pack([*elements, bytes(padding)])


def pack_m2(fields: HelloFields, *, datagram: bool) -> bytes:
    """Return M2's body without the signature that follows it.

    Raises:
        LocalProtocolError: the capabilities exceed their caps or leave no room in a datagram.

    """
    body = _pack(_elements(fields))
    if datagram:
        _check_datagram(body)
    return body


def unpack_m0(body: bytes) -> str:
    """Return the plugin_id of an M0.

    Raises:
        RemoteProtocolError: the body is not an M0.

    """
    return _plugin_id(_unpack(M0, body, 1)[0])


def unpack_m1(body: bytes) -> HelloFields:
    """Return the fields of an M1; nothing in them is authenticated.

    Raises:
        RemoteProtocolError: the body is not an M1, or (as ``UnknownMessage``) of another version.

    """
    return _fields(M1, body)


def unpack_m2(body: bytes) -> tuple[HelloFields, bytes, bytes]:
    """Return fields, the body without the signature, and the signature of an M2; unverified.

    Raises:
        RemoteProtocolError: the body is not an M2, or (as ``UnknownMessage``) of another version.

    """
    if len(body) <= SIGNATURE_SIZE:
        raise RemoteProtocolError("M2 is too short for a signature")
    unsigned, signature = body[:-SIGNATURE_SIZE], body[-SIGNATURE_SIZE:]
    return _fields(M2, unsigned), unsigned, signature


def unpack_m3(body: bytes) -> bytes:
    """Return the signature that an M3 consists of.

    Raises:
        RemoteProtocolError: the body has another size.

    """
    if len(body) != SIGNATURE_SIZE:
        raise RemoteProtocolError(f"M3 has {len(body)} bytes instead of {SIGNATURE_SIZE}")
    return body


def _pack(elements: list[Any]) -> bytes:
    return bytes(msgpack.packb(elements, use_bin_type=True))


def _elements(fields: HelloFields) -> list[Any]:
    capabilities = fields.capabilities
    if len(capabilities) > MAX_CAPABILITIES or not all(map(_valid_capability, capabilities)):
        raise LocalProtocolError(
            f"at most {MAX_CAPABILITIES} capabilities of 1 to {MAX_CAPABILITY_BYTES} bytes"
        )
    ids = [fields.sender, fields.receiver, fields.nonce, fields.share]
    return [fields.version, fields.plugin_id, *ids, list(capabilities)]


def _check_datagram(body: bytes) -> None:
    if MAGIC_SIZE + len(body) + SIGNATURE_SIZE > DATAGRAM_SIZE:
        raise LocalProtocolError(f"the capabilities don't fit a datagram of {DATAGRAM_SIZE} bytes")


def _unpack(kind: int, body: bytes, count: int) -> list[Any]:
    """Decode an array of at least ``count`` elements; whatever else it is, is the peer's fault."""
    if len(body) > MAX_HELLO_BODY:
        raise MessageTooLarge(f"{kind_name(kind)} of {len(body)} bytes; at most {MAX_HELLO_BODY}")
    try:
        elements = msgpack.unpackb(
            body, raw=False, max_array_len=_MAX_ELEMENTS, max_map_len=_MAX_ELEMENTS
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(
            f"{kind_name(kind)} is not msgpack ({type(error).__name__})"
        ) from error
    if not isinstance(elements, list) or len(elements) < count:
        raise RemoteProtocolError(f"{kind_name(kind)} is not an array of {count} elements or more")
    return elements


def _fields(kind: int, body: bytes) -> HelloFields:
    elements = _unpack(kind, body, 1)
    version = elements[0]
    # The version comes first: another one may have other fields.
    if type(version) is not int or version != VERSION:
        shown = version if type(version) is int else type(version).__name__
        raise UnknownMessage(f"{kind_name(kind)} of version {shown}; this side speaks {VERSION}")
    if len(elements) < _FIELDS:
        raise RemoteProtocolError(f"{kind_name(kind)} has {len(elements)} of {_FIELDS} fields")
    keys = elements[2:6]
    if not all(isinstance(key, bytes) and len(key) == KEY_SIZE for key in keys):
        raise RemoteProtocolError(f"an id, nonce or share of {kind_name(kind)} is not 32 bytes")
    return HelloFields(
        plugin_id=_plugin_id(elements[1]),
        sender=keys[0],
        receiver=keys[1],
        nonce=keys[2],
        share=keys[3],
        capabilities=_capabilities(kind, elements[6]),
    )


def _plugin_id(value: object) -> str:
    if not isinstance(value, str) or not valid_plugin_id(value):
        raise RemoteProtocolError("the plugin_id is not 15 letters and digits")
    return value


def _capabilities(kind: int, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_CAPABILITIES:
        raise RemoteProtocolError(
            f"the capabilities of {kind_name(kind)} are no list within the cap"
        )
    if not all(map(_valid_capability, value)):
        raise RemoteProtocolError(f"a capability of {kind_name(kind)} is no text within the cap")
    return tuple(value)


def _valid_capability(value: object) -> bool:
    if not isinstance(value, str) or not value.isprintable():
        return False
    return 0 < len(value.encode()) <= MAX_CAPABILITY_BYTES
