"""Which key a name may stand for: the pins, as resolution and connecting use them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from warpgate.errors import KeyChangedError, WarpgateError
from warpgate.names.address_book import AddressBook
from warpgate.names.pins import Pin, Pins
from warpgate.names.rules import clean_name, fingerprint, is_node_id, shown, split_full_name
from warpgate.protocol.peer_address import ADDRESS_TEXT_PREFIX, PeerAddress

if TYPE_CHECKING:
    from warpgate.events import Counters

log = logging.getLogger("warpgate")


class Trust:
    """A node's pins and address book.

    Args:
        folder: the install path; None keeps pins in memory and has no address book.
        counters: where pins that could not be written are counted.
        clock: Unix time in seconds.

    """

    def __init__(
        self, folder: Path | None, counters: Counters, clock: Callable[[], float] = time.time
    ) -> None:
        self.pins = Pins(folder, clock)
        self.book = AddressBook(folder)
        self._counters = counters

    def pinned(self, dest: str) -> Pin | None:
        """Return the pin of a name, which may be in its full form; raises as ``Pins.get``."""
        return self.pins.get(pin_name(split_full_name(dest)[0]))

    def check(self, dest: str, key: bytes) -> None:
        """Check the key that a resolver found for a name.

        Args:
            dest: the name; in the form ``name@fingerprint`` the pin does not matter.
            key: the key found, 32 bytes.

        Raises:
            KeyChangedError: the name is pinned to another key, or asks for another.
            ConfigError: the pins can't be read.

        """
        _name, wanted = split_full_name(dest)
        found = fingerprint(key)
        if wanted is not None:
            if wanted != found:
                raise KeyChangedError(
                    f"{shown(dest)} was resolved to the key {found}, which is not the one asked for"
                )
            return
        pin = self.pinned(dest)
        if pin is not None and pin.fingerprint != found:
            raise self.pins.changed(pin, found)

    def proven(self, dest: object, peer: PeerAddress) -> str | None:
        """Pin a name after a hello with the key has succeeded.

        Args:
            dest: what the application named the peer by; addresses and node ids need no pin.
            peer: the address that was resolved.

        Returns:
            The name, when its pin is new.

        Raises:
            KeyChangedError: somebody else has pinned another key meanwhile.

        """
        if not isinstance(dest, str) or dest.startswith(ADDRESS_TEXT_PREFIX) or is_node_id(dest):
            return None
        name, wanted = split_full_name(dest)
        name = pin_name(name)
        try:
            if wanted is not None:
                pin = self.pins.get(name)
                if pin is not None and pin.fingerprint != wanted:
                    return None  # asked for in full: the pin stays what it is
            new = self.pins.prove(name, fingerprint(peer.key), peer.sequence)
        except KeyChangedError:
            raise
        except WarpgateError as error:
            self._counters.count("pins_unwritten")
            log.warning("the key of %s could not be pinned: %s", shown(name), error)
            return None
        return name if new else None


def pin_name(name: str) -> str:
    """Return the text under which a name is pinned; of names that only plugins know, the text itself."""
    try:
        return clean_name(name)
    except ValueError:
        return name
