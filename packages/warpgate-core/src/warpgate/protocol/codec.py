"""The bytes of messages: :func:`encode_body` and :func:`decode_body`, and who has which wire name.

::

    body     = msgpack [meta, routing, payload]
    meta     = the fields named in META_FIELDS, by position
    routing  = the fields named in ROUTING_FIELDS, by position
    payload  = map from field name to value, or nil for a message without a payload

Address families are 4 and 6 (0: not set), since systems differ in their own numbers. Missing last
elements have their defaults and further ones are ignored: new fields go to the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from warpgate.errors import LocalProtocolError, MessageTooLarge, RemoteProtocolError, UnknownMessage
from warpgate.net.constants import IP4, IP6
from warpgate.protocol import strict

if TYPE_CHECKING:
    from warpgate.protocol.proto_msg import ProtoMsg

MAX_MESSAGE_BYTES: Final = 8192
MAX_WIRE_NAME_BYTES: Final = 128
MAX_PAYLOAD_DEPTH: Final = 32

META_FIELDS: Final = (
    "ttl",
    "pipe_id",
    "af",
    "src_buf",
    "src_index",
    "route_type",
    "same_machine",
    "plugin_name",
)
ROUTING_FIELDS: Final = ("af", "dest_buf", "dest_index")

_FAMILY_TO_WIRE: Final = {0: 0, IP4: 4, IP6: 6}
_FAMILY_FROM_WIRE: Final = {0: 0, 4: IP4, 6: IP6}

M = TypeVar("M", bound="ProtoMsg")


def encode_body(msg: ProtoMsg) -> bytes:
    """Return the body of a message, without its wire name.

    Raises:
        LocalProtocolError: a field has a value that the peer would refuse, or its payload is
            missing.
        MessageTooLarge: more than 8,192 bytes.

    """
    try:
        body = strict.pack(
            [
                _by_position(msg.meta, META_FIELDS),
                _by_position(msg.routing, ROUTING_FIELDS),
                _payload_map(msg),
            ]
        )
    except (ValueError, TypeError, PydanticSerializationError) as error:
        raise LocalProtocolError(f"{_name(type(msg))} can't be sent: {error}") from error
    if len(body) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(
            f"{_name(type(msg))} has {len(body)} bytes, at most {MAX_MESSAGE_BYTES} are allowed"
        )
    return body


def decode_body(cls: type[M], data: bytes) -> M:
    """Return the message of class ``cls`` that :func:`encode_body` made.

    Raises:
        MessageTooLarge: more than 8,192 bytes.
        RemoteProtocolError: anything else that is wrong with it.

    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"{_name(cls)}: {len(data)} bytes, at most {MAX_MESSAGE_BYTES}")
    try:
        meta, routing, payload = strict.take_list(strict.unpack(data), "message", 3)[:3]
        if payload is not None and not isinstance(payload, dict):
            raise ValueError("its payload is no map")
        return cls(
            meta=_by_name(meta, META_FIELDS, "meta"),
            routing=_by_name(routing, ROUTING_FIELDS, "routing"),
            payload=cls.payload_from_wire(_plain(payload)),  # a copy, not too deep to walk
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        raise RemoteProtocolError(f"{_name(cls)} refused: {where}: {first['msg'][:200]}") from None
    # A validator of the plugin's own may raise anything on input that its author never imagined.
    except Exception as error:
        raise RemoteProtocolError(f"{_name(cls)} refused: {error!r:.200}") from error


def pack_message(msg: ProtoMsg) -> bytes:
    """Return a self-describing message: msgpack [wire name, body]; raises what encode_body does."""
    data = strict.pack([msg.WIRE_NAME, encode_body(msg)])
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"{_name(type(msg))} has {len(data)} bytes with its wire name")
    return data


def unpack_message(cls: type[M], data: bytes) -> M:
    """Return the message of class ``cls`` that :func:`pack_message` made.

    Raises:
        UnknownMessage: it has another class's wire name.
        RemoteProtocolError: anything else that is wrong with it.

    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"{len(data)} bytes, at most {MAX_MESSAGE_BYTES} are allowed")
    try:
        name, body = strict.take_list(strict.unpack(data), "message", 2)[:2]
        wire_name = strict.take_str(name, "wire name", MAX_WIRE_NAME_BYTES)
        body = strict.take_bytes(body, "body", MAX_MESSAGE_BYTES, 0)
    except ValueError as error:
        raise RemoteProtocolError(f"not a message: {error}") from None
    if wire_name != cls.WIRE_NAME:
        raise UnknownMessage(f"a message {wire_name!r} where {cls.WIRE_NAME!r} was expected")
    return decode_body(cls, body)


class MessageTable:
    """The message classes that a node understands, by wire name."""

    def __init__(self) -> None:
        """Start with none."""
        self._classes: dict[str, type[ProtoMsg]] = {}

    def add(self, cls: type[ProtoMsg]) -> None:
        """Understand messages of ``cls`` from now on; adding it twice is harmless.

        Raises:
            LocalProtocolError: another class has its wire name, or it is no usable name.

        """
        try:
            name = strict.take_str(cls.WIRE_NAME, "wire name", MAX_WIRE_NAME_BYTES)
        except ValueError as error:
            raise LocalProtocolError(f"{cls.__qualname__}: {error}") from None
        known = self._classes.setdefault(name, cls)
        if known is not cls:
            raise LocalProtocolError(
                f"the wire name {name!r} of {cls.__module__}.{cls.__qualname__} is "
                f"{known.__module__}.{known.__qualname__}'s already; rename one of the two"
            )

    def replace(self, cls: type[ProtoMsg]) -> None:
        """Understand messages of ``cls``, in the place of the class that had its wire name.

        Raises:
            LocalProtocolError: its wire name is no usable name.

        """
        self._classes.pop(cls.WIRE_NAME, None)
        self.add(cls)

    def get(self, wire_name: str) -> type[ProtoMsg]:
        """Return the class with a wire name.

        Raises:
            UnknownMessage: there is none.

        """
        try:
            return self._classes[wire_name]
        except KeyError:
            raise UnknownMessage(f"nothing here understands a message {wire_name!r}") from None

    def __contains__(self, wire_name: object) -> bool:
        """Return whether a wire name is known."""
        return wire_name in self._classes

    def __iter__(self) -> Iterator[str]:
        """Iterate over the wire names."""
        return iter(self._classes)

    def __len__(self) -> int:
        """Return how many classes are known."""
        return len(self._classes)


def _name(cls: type[ProtoMsg]) -> str:
    return cls.WIRE_NAME or cls.__name__


def _by_position(model: BaseModel, names: Sequence[str]) -> list[Any]:
    # Assignments were not validated when they were made: the peer's checks apply here.
    checked = type(model).model_validate({name: getattr(model, name) for name in names})
    values = [getattr(checked, name) for name in names]
    at = names.index("af")
    if values[at] not in _FAMILY_TO_WIRE:
        raise ValueError(f"af {values[at]!r} is neither IP4 nor IP6")
    values[at] = _FAMILY_TO_WIRE[values[at]]
    return values


def _by_name(value: Any, names: Sequence[str], where: str) -> dict[str, Any]:
    # Fewer elements: an older peer; more: a newer one.
    fields = dict(zip(names, strict.take_list(value, where, 0), strict=False))
    if "af" in fields:
        family = strict.take_int(fields["af"], f"{where}.af", 255)
        if family not in _FAMILY_FROM_WIRE:
            raise ValueError(f"{where}.af is {family}")
        fields["af"] = _FAMILY_FROM_WIRE[family]
    return fields


def _payload_map(msg: ProtoMsg) -> dict[str, Any] | None:
    payload = msg.checked_payload()
    if payload is None:
        return None
    dumped = payload.model_dump(mode="python", by_alias=False, warnings="error")
    plain: dict[str, Any] = _plain(dumped)
    return plain


def _plain(value: Any, depth: int = 1) -> Any:
    """Return ``value`` in msgpack's types; what has none goes as in JSON (addresses, dates …)."""
    if depth > MAX_PAYLOAD_DEPTH:
        raise ValueError(f"the payload is nested deeper than {MAX_PAYLOAD_DEPTH}")
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Mapping):
        return {_plain(k, depth + 1): _plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth + 1) for item in value]
    return to_jsonable_python(value)
