"""The messages by which two nodes arrange a connection; subclass :class:`ConMsg` for your own.

A message says who and where (``meta``, ``routing``), which the core fills at send, and what
(``payload``), which is the strategy's own::

    class Punch(ConMsg):
        class Payload(BaseModel):
            ports: list[int] = []

    msg = Punch(payload={"ports": [4000, 4001]})
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from warpgate.net.constants import NIC_BIND
from warpgate.protocol.codec import pack_message, unpack_message
from warpgate.protocol.con_id import PLUGIN_ID_LENGTH
from warpgate.protocol.peer_address import MAX_ADDRESS_BYTES

MAX_PLUGIN_NAME: Final = 64  # characters
MAX_TTL: Final = 2**48  # Unix seconds; beyond any clock

AddressBytes = Annotated[bytes, Field(max_length=MAX_ADDRESS_BYTES)]
Index = Annotated[int, Field(ge=0, le=2**32 - 1)]

# Names that are misspelt should not be dropped silently; unknown ones from a peer never get here.
_CONFIG: Final = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Meta(BaseModel):
    """Which attempt a message belongs to and where it comes from.

    ``ttl`` is when it expires, in Unix seconds; ``pipe_id`` the attempt's plugin_id; ``src_buf``
    the sender's signed address and ``src_index`` its interface in there; ``plugin_name`` the
    strategy that the peer is to run. What is left unset is filled at send. The receiver works
    ``af``, ``route_type`` and ``same_machine`` out for itself (WIRE.md section 2).
    """

    model_config = _CONFIG

    ttl: int = Field(default=0, ge=0, le=MAX_TTL)
    pipe_id: str = Field(default="", max_length=PLUGIN_ID_LENGTH)
    af: int = 0
    src_buf: AddressBytes = b""
    src_index: Index = 0
    route_type: int = Field(default=NIC_BIND, ge=0, le=255)
    same_machine: bool = False
    plugin_name: str = Field(default="", max_length=MAX_PLUGIN_NAME)


class Routing(BaseModel):
    """Where a message goes to: the receiver's address and the interface that is meant."""

    model_config = _CONFIG

    af: int = 0
    dest_buf: AddressBytes = b""
    dest_index: Index = 0


class ProtoMsg(BaseModel):
    """The base of all messages.

    A subclass may declare a nested ``class Payload(BaseModel)``. ``payload`` is then an instance
    of it: given, or made of defaults; None until it is set where it has no defaults. Without such
    a class ``payload`` is None. ``WIRE_NAME`` is the class's own name until a plugin is installed,
    which makes it ``"<plugin name>.<class name>"``.
    """

    model_config = _CONFIG

    WIRE_NAME: ClassVar[str] = "ProtoMsg"
    Payload: ClassVar[Any] = None

    meta: Meta = Field(default_factory=Meta)
    routing: Routing = Field(default_factory=Routing)
    payload: Any = Field(default=None, validate_default=True)

    def __init__(self, payload: Any = ..., /, **fields: Any) -> None:
        """Make a message.

        Args:
            payload: the payload, as a mapping or a ``Payload``; also as ``payload=``, the form
                that type checkers know. Without it, or with ``...``, it is made of its defaults.
            **fields: ``meta`` and ``routing``, as mappings or models.

        Raises:
            pydantic.ValidationError: a value does not fit (a ValueError).

        """
        if payload is not ...:
            if "payload" in fields:
                raise TypeError("payload is given twice")
            fields["payload"] = payload
        super().__init__(**fields)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Name the class on the wire after itself unless it names itself."""
        super().__init_subclass__(**kwargs)
        if "WIRE_NAME" not in cls.__dict__:
            cls.WIRE_NAME = cls.__name__

    @field_validator("payload", mode="before")
    @classmethod
    def _check_payload(cls, value: Any) -> Any:
        if value is not None and value is not ...:
            return cls._to_payload(value)
        if cls.Payload is None:
            return None
        try:
            return cls.Payload()
        except ValidationError:
            return None  # it has fields without defaults: the sender sets it later

    @classmethod
    def _to_payload(cls, value: Any) -> BaseModel:
        if cls.Payload is None:
            raise ValueError(f"{cls.__name__} has a payload but declares no class Payload")
        if isinstance(value, cls.Payload):
            model: BaseModel = value
        else:
            # By field name on the wire, so by field name here, too: aliases are the class's own.
            model = cls.Payload.model_validate(value, by_name=True, by_alias=True)
        return model

    @classmethod
    def payload_from_wire(cls, value: dict[str, Any] | None) -> BaseModel | None:
        """Return the payload that a peer sent; None for a class without one.

        Raises:
            ValueError: it does not fit ``Payload``.

        """
        if cls.Payload is None:
            return None
        model: BaseModel = cls.Payload.model_validate(value or {}, by_name=True, by_alias=False)
        return model

    def checked_payload(self) -> BaseModel | None:
        """Return the payload as a ``Payload``, also when a mapping was assigned.

        Raises:
            ValueError: it does not fit, or it must be set and is not.

        """
        if self.payload is not None:
            return self._to_payload(self.payload)
        if self.Payload is None:
            return None
        made: BaseModel = self.Payload()
        return made

    def pack(self) -> bytes:
        """Return the message with its wire name, for :meth:`unpack`.

        Raises:
            LocalProtocolError: a field has a value that the peer would refuse.
            MessageTooLarge: more than 8,192 bytes.

        """
        return pack_message(self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return the message that :meth:`pack` made.

        Raises:
            UnknownMessage: it has another class's wire name.
            RemoteProtocolError: anything else that is wrong with it.

        """
        return unpack_message(cls, data)


class ConMsg(ProtoMsg):
    """An ordinary message: asks the peer to run a strategy, or answers such a message."""
