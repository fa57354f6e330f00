"""The address book: names that this machine's user has written down.

The file ``address_book`` in the install path has one name a line, in UTF-8: the name, then what it
stands for: an address, a node id, or the full form of another name. Lines that begin with ``#`` are
comments::

    alice  wg1_91dHAQC1lsQgi1_4bVeSsDZw…
    bob    ur7jhq6cuptbir2unbo5nmueocqfqlh6hcf4lsi6mngqegcj6u2a
    carol  carol@4pq5k7x2m3n6b7c5d4e3f2a7b6c5d4e3
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from warpgate.errors import ConfigError
from warpgate.names.files import read_text
from warpgate.names.rules import clean_name, is_node_id, split_full_name
from warpgate.protocol.peer_address import ADDRESS_TEXT_PREFIX

BOOK_FILE_NAME: Final = "address_book"


class AddressBook:
    """Reads an install path's address book, anew for every question.

    Args:
        folder: where ``address_book`` is; None for a book without entries.

    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / BOOK_FILE_NAME

    def find(self, name: str) -> str | None:
        """Return what a name stands for, None when it is not in the book.

        Args:
            name: in the form of :func:`~warpgate.names.rules.clean_name`.

        Raises:
            ConfigError: the file can't be read, or the name's line; the text says which.

        """
        if self.path is None:
            return None
        for number, line in enumerate(read_text(self.path).splitlines(), 1):
            fields = line.split()
            if not fields or fields[0].startswith("#"):
                continue
            try:
                if clean_name(fields[0]) != name:
                    continue
            except ValueError:
                continue  # some other name; whoever asks for it is told the rules
            if len(fields) == 2 and _stands_for_a_peer(fields[1]):
                return fields[1]
            raise ConfigError(
                f"{self.path}, line {number}: expected a name and its address (wg1_…), node id or "
                "name@fingerprint; correct the line"
            )
        return None


def _stands_for_a_peer(text: str) -> bool:
    return (
        text.startswith(ADDRESS_TEXT_PREFIX)
        or is_node_id(text)
        or split_full_name(text)[1] is not None
    )
