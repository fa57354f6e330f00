"""From a name to the one record that may be meant: pins, fingerprints, and whoever claims it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from warpgate.errors import SignallingError, UnknownPeerError
from warpgate.names.rules import clean_name, full_name, shown, split_full_name
from warpgate.names.rules import fingerprint as fingerprint_of

if TYPE_CHECKING:
    from warpgate.names.pins import Pin, Pins
    from warpgate.names.record import NameRecord
    from warpgate.names.retained import RetainedNames
    from warpgate.names.trust import Trust
    from warpgate.protocol.peer_address import PeerAddress

FIND_S: Final = 3.0
"""How long to look: a peer that starts now has its record there in a moment."""
PINNED_S: Final = 1.0
"""How long the key that a name is pinned to has before others that claim the name are reported."""
LOOK_AGAIN_S: Final = 0.2


async def find_node(names: RetainedNames, node_id: str) -> PeerAddress:
    """Return the address of the node with an id.

    Raises:
        UnknownPeerError: no broker knows it; the text says why.

    """
    loop = asyncio.get_running_loop()
    until = loop.time() + FIND_S
    while (left := until - loop.time()) > 0:
        try:
            found = await names.lookup_node(node_id, left)
        except SignallingError as error:
            raise unknown(node_id, f"its brokers can't be asked: {error}") from error
        if found is not None:
            return found
        await asyncio.sleep(LOOK_AGAIN_S)
    raise unknown(node_id, "its brokers know no such node")


async def find_name(names: RetainedNames, trust: Trust, dest: str) -> PeerAddress:
    """Return the address behind a name.

    Args:
        names: the brokers' records.
        trust: the pins.
        dest: ``name`` or ``name@fingerprint``; the latter, and a pinned name, are read from the one
            topic of their key, which nobody else's records can crowd out.

    Raises:
        UnknownPeerError: not a possible name, or no broker has a valid record of it, or several keys
            claim it and none is pinned; the text says why and what to do.
        KeyChangedError: the name is pinned, and only others claim it.
        ConfigError: the pins can't be read.

    """
    text, wanted = split_full_name(dest)
    try:
        name = clean_name(text)
    except ValueError as error:
        raise unknown(dest, f"it can't be a name, because {error}") from None
    pin = trust.pins.get(name)
    sequence = pin.sequence if pin is not None and wanted in (None, pin.fingerprint) else 0
    if wanted is None and pin is not None:
        wanted = pin.fingerprint
    else:
        pin = None
    loop = asyncio.get_running_loop()
    began = loop.time()
    while (left := began + FIND_S - loop.time()) > 0:
        try:
            records = await names.lookup(name, left, fingerprint=wanted, sequence=sequence)
            if not records and pin is not None and loop.time() - began >= PINNED_S:
                await _report_others(names, trust.pins, pin, left)
        except SignallingError as error:
            raise unknown(dest, f"its brokers can't be asked: {error}") from error
        if len(records) == 1:
            return records[0].address
        if records:
            raise _ambiguous(name, records, trust.pins)
        await asyncio.sleep(LOOK_AGAIN_S)
    holder = f" of the key {wanted}" if wanted else ""
    raise unknown(
        dest,
        f"its brokers have no valid record{holder}: the peer is offline, uses other brokers, or one of "
        "the two clocks is wrong",
    )


async def _report_others(names: RetainedNames, pins: Pins, pin: Pin, timeout_s: float) -> None:
    others = [
        fingerprint_of(record.key)
        for record in await names.lookup(pin.name, timeout_s)
        if fingerprint_of(record.key) != pin.fingerprint
    ]
    if others:
        raise pins.changed(pin, others[0])


def _ambiguous(name: str, records: list[NameRecord], pins: Pins) -> UnknownPeerError:
    choices = "".join(f"\n  {full_name(name, record.key)}" for record in records)
    return UnknownPeerError(
        f"{len(records)} nodes claim the name {shown(name)}:{choices}\n"
        "ask its owner for the fingerprint, and connect to the name in full, or pin it: "
        f"{pins.how_to_accept(name, 'FINGERPRINT')}"
    )


def unknown(dest: str, why: str) -> UnknownPeerError:
    """Return the error for a name or node id that could not be found."""
    return UnknownPeerError(f"nobody here knows {shown(dest)}: {why}; or give the peer's address")
