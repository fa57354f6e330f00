"""``conf["allow"]``: who may connect to this node."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from warpgate.errors import ConfigError
from warpgate.identity import node_id_bytes
from warpgate.names.rules import clean_name, fingerprint, is_node_id, shown, split_full_name

if TYPE_CHECKING:
    from warpgate.names.pins import Pins

log = logging.getLogger("warpgate")


class AllowList:
    """Node ids, names in full (``name@fingerprint``), and names that stand for the key they are pinned to.

    A name without a pin lets nobody in; a pin made later, by this node or by ``warpgate trust``, counts
    from then on.

    Args:
        entries: the setting's; None for anyone.
        pins: what names stand for.

    Raises:
        ConfigError: an entry is neither a node id nor a possible name.

    """

    def __init__(self, entries: Iterable[str] | None, pins: Pins) -> None:
        self._anyone = entries is None
        self._pins = pins
        self._fingerprints: set[str] = set()
        self._names: set[str] = set()
        for entry in entries or ():
            self._add(entry)
        for name in sorted(self._names):
            if pins.get(name) is None:
                log.warning(
                    'conf["allow"] holds %s, which is not pinned yet and so lets nobody in: '
                    "connect to it once, or pin it with: %s",
                    shown(name),
                    pins.how_to_accept(name, "FINGERPRINT"),
                )

    def _add(self, entry: str) -> None:
        name, wanted = split_full_name(entry)
        if is_node_id(entry):
            self._fingerprints.add(fingerprint(node_id_bytes(entry)))
            return
        try:
            name = clean_name(name)
        except ValueError as error:
            raise ConfigError(
                f'conf["allow"] holds {shown(entry)}, which is no node id of 52 characters and no name, '
                f"because {error}"
            ) from None
        if wanted is not None:
            self._fingerprints.add(wanted)
        else:
            self._names.add(name)

    def refuses(self, key: bytes) -> str | None:
        """Return why the holder of a key may not connect, None when it may."""
        if self._anyone:
            return None
        found = fingerprint(key)
        if found in self._fingerprints:
            return None
        try:
            for name in self._names:
                pin = self._pins.get(name)
                if pin is not None and pin.fingerprint == found:
                    return None
        except ConfigError as error:  # a damaged file lets nobody in
            return str(error)
        return 'conf["allow"] does not name it'
