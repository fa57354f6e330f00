"""msgpack from a stranger: whatever the bytes are, a value comes out or ``ValueError``."""

from __future__ import annotations

from typing import Any, Final

import msgpack

MAX_ITEMS: Final = 1024  # of one array or map; the decoder makes room before it sees the elements


def unpack(data: bytes) -> Any:
    """Decode exactly one msgpack value.

    No length that the data declares is believed beyond the data's own size (arrays and maps: nor
    beyond ``MAX_ITEMS``), so the caller caps the memory by capping ``data``. Extension types become
    ``msgpack.ExtType`` (none is ours; a later version may have some).

    Raises:
        ValueError: not msgpack, incomplete, or followed by something else.

    """
    size = len(data)
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=min(size, MAX_ITEMS),
            max_map_len=min(size, MAX_ITEMS),
            max_ext_len=size,
        )
    # TypeError: a map's key that can't be one. RecursionError: msgpack's pure-Python fallback.
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"not decodable: {type(error).__name__}") from error


def pack(value: Any) -> bytes:
    """Encode one value.

    Raises:
        ValueError: a type or a number that msgpack has no form for.

    """
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return packed


def take_list(value: Any, name: str, minimum: int, maximum: int | None = None) -> list[Any]:
    """Return ``value`` if it is an array of ``minimum`` to ``maximum`` elements.

    Raises:
        ValueError: it is not; ``name`` says which field.

    """
    if not isinstance(value, list):
        raise ValueError(f"{name} is no array")
    if len(value) < minimum:
        raise ValueError(f"{name} has {len(value)} elements, expected {minimum}")
    if maximum is not None and len(value) > maximum:
        raise ValueError(f"{name} has {len(value)} elements, more than {maximum}")
    return value


def take_int(value: Any, name: str, maximum: int, minimum: int = 0) -> int:
    """Return ``value`` if it is a whole number in the range; raises ValueError otherwise."""
    if type(value) is not int or not minimum <= value <= maximum:
        raise ValueError(f"{name} is no number from {minimum} to {maximum}")
    return value


def take_bytes(value: Any, name: str, maximum: int, minimum: int | None = None) -> bytes:
    """Return ``value`` if it is bytes of ``minimum`` to ``maximum`` (default: exactly ``maximum``).

    Raises:
        ValueError: it is not; ``name`` says which field.

    """
    least = maximum if minimum is None else minimum
    if not isinstance(value, bytes) or not least <= len(value) <= maximum:
        raise ValueError(f"{name} is not {least} to {maximum} bytes")
    return value


def take_str(value: Any, name: str, maximum: int) -> str:
    """Return ``value`` if it is printable text of 1 to ``maximum`` bytes without spaces.

    Raises:
        ValueError: it is not; ``name`` says which field.

    """
    if not isinstance(value, str) or not 0 < len(value.encode()) <= maximum:
        raise ValueError(f"{name} is not text of 1 to {maximum} bytes")
    if not value.isprintable() or " " in value:
        raise ValueError(f"{name} holds spaces or control characters")
    return value
