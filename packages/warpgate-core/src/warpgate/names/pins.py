"""Pins: which key is behind a name, once a hello has proven it, as in ssh's known_hosts.

The file ``known_names`` in the install path has one pin a line, in UTF-8::

    alice 4pq5k7x2m3n6b7c5d4e3f2a7b6c5d4e3 1790000000 2026-09-21

the name (``%``-escaped where it holds spaces, ``#`` or ``%``), the key's fingerprint, the highest sequence
number seen in an address of that key, and the day of the first proof. What follows on a line is kept, and
so are empty lines and those that begin with ``#``. A line that can't be read is an error, never a
forgotten pin.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import platformdirs

from warpgate.errors import ConfigError, KeyChangedError
from warpgate.names.files import Stamp, locked, read_text, stamp_of, write_text
from warpgate.names.rules import shown

PINS_FILE_NAME: Final = "known_names"
MAX_PINS: Final = 65_536

_HEAD: Final = (
    "# Names and the keys that have proven them; see docs/names.md. `warpgate trust` edits it."
)
_LINE: Final = re.compile(
    r"(?P<name>\S+)[ \t]+(?P<fingerprint>[a-z2-7]{32})[ \t]+(?P<sequence>\d{1,19})[ \t]+"
    r"(?P<since>\d{4}-\d\d-\d\d)(?P<rest>(?:[ \t].*)?)"
)
_ESCAPED: Final = re.compile(r"[\s#%]")


@dataclass(frozen=True, slots=True)
class Pin:
    """A name and the fingerprint of its key.

    ``sequence`` is the highest seen in an address of the key; ``since`` the day of the first proof,
    ``YYYY-MM-DD`` (UTC).
    """

    name: str
    fingerprint: str
    sequence: int
    since: str


class Pins:
    """The pins of an install path; several nodes and processes may share them.

    Args:
        folder: where ``known_names`` is; None keeps the pins in memory.
        clock: Unix time in seconds.

    """

    def __init__(self, folder: Path | None, clock: Callable[[], float] = time.time) -> None:
        self.path = None if folder is None else folder / PINS_FILE_NAME
        self._clock = clock
        self._pins: dict[str, Pin] = {}
        self._stamp: Stamp | None = None

    def get(self, name: str) -> Pin | None:
        """Return a name's pin.

        Raises:
            ConfigError: the file can't be read, or a line of it.

        """
        self._refresh()
        return self._pins.get(name)

    def all(self) -> list[Pin]:
        """Return every pin by name; raises as :meth:`get`."""
        self._refresh()
        return sorted(self._pins.values(), key=lambda pin: pin.name)

    def prove(self, name: str, fingerprint: str, sequence: int) -> bool:
        """Pin a name to a key that a hello has proven.

        Returns:
            Whether the pin is new; of an old one the sequence number grows, if it is higher.

        Raises:
            KeyChangedError: the name is pinned to another key.
            ConfigError: the file can't be read or written, or is full.

        """
        pin = self.get(name)
        if pin is not None and pin.fingerprint == fingerprint and pin.sequence >= sequence:
            return False
        new = False

        def change(pins: dict[str, Pin]) -> None:
            nonlocal new
            old = pins.get(name)
            new = old is None
            if old is None:
                pins[name] = Pin(name, fingerprint, sequence, self._today())
            elif old.fingerprint != fingerprint:
                raise self.changed(old, fingerprint)
            else:
                pins[name] = replace(old, sequence=max(old.sequence, sequence))

        self._change(change)
        return new

    def accept(self, name: str, fingerprint: str) -> Pin | None:
        """Pin a name to a key on the user's word; returns the pin that this replaces.

        Raises:
            ConfigError: the file can't be read or written, or is full.

        """
        replaced: Pin | None = None

        def change(pins: dict[str, Pin]) -> None:
            nonlocal replaced
            replaced = pins.get(name)
            if replaced is None or replaced.fingerprint != fingerprint:
                pins[name] = Pin(name, fingerprint, 0, self._today())

        self._change(change)
        return replaced

    def remove(self, name: str) -> bool:
        """Forget a name; returns whether there was a pin. Raises ConfigError as :meth:`accept`."""
        found = False

        def change(pins: dict[str, Pin]) -> None:
            nonlocal found
            found = pins.pop(name, None) is not None

        self._change(change)
        return found

    def changed(self, pin: Pin, found: str) -> KeyChangedError:
        """Return the error for a name whose key is another one than its pin's."""
        return KeyChangedError(
            f"the key of {shown(pin.name)} is not the pinned one: pinned {pin.fingerprint} "
            f"(since {pin.since}), found {found}. Either somebody else uses the name, or it has a "
            "new key. If you have learnt from its owner that the new fingerprint is right: "
            f"{self.how_to_accept(pin.name, found)}"
        )

    def how_to_accept(self, name: str, fingerprint: str) -> str:
        """Return the command that pins a name; for pins in memory the Python call."""
        if self.path is None:
            return f"node.trust.pins.accept({name!r}, {fingerprint!r})"
        folder = self.path.parent
        usual = folder == platformdirs.user_data_path("warpgate", appauthor=False)
        where = "" if usual else f'--install-path "{folder}" '
        full = f"{name}@{fingerprint}"
        return f"warpgate trust {where}accept {full if ' ' not in full else repr(full)}"

    def _today(self) -> str:
        return time.strftime("%Y-%m-%d", time.gmtime(self._clock()))

    # The file.

    def _refresh(self) -> None:
        if self.path is None:
            return
        try:
            stamp = stamp_of(self.path)
        except OSError as error:
            raise ConfigError(f"{self.path} can't be read ({error.strerror or error})") from error
        if stamp != self._stamp:
            self._pins = _parse(self.path, read_text(self.path).splitlines())
            self._stamp = stamp

    def _change(self, change: Callable[[dict[str, Pin]], None]) -> None:
        if self.path is None:
            _bounded(change, self._pins)
            return
        with locked(self.path):
            # What another process has written since is in here; what people wrote is kept.
            text = read_text(self.path)
            lines = text.splitlines() if text else [_HEAD]
            pins = _parse(self.path, lines)
            before = dict(pins)
            _bounded(change, pins)
            if pins != before:
                try:
                    write_text(self.path, "".join(f"{line}\n" for line in _merge(lines, pins)))
                except OSError as error:
                    raise ConfigError(
                        f"{self.path} can't be written ({error.strerror or error}): "
                        "give this user access to it"
                    ) from error
            self._pins, self._stamp = pins, stamp_of(self.path)


def _bounded(change: Callable[[dict[str, Pin]], None], pins: dict[str, Pin]) -> None:
    before = len(pins)
    change(pins)
    if len(pins) > max(before, MAX_PINS):
        pins.popitem()
        raise ConfigError(f"{MAX_PINS} names are pinned already; `warpgate trust remove` some")


def _parse(path: Path, lines: list[str]) -> dict[str, Pin]:
    pins: dict[str, Pin] = {}
    for number, line in enumerate(lines, 1):
        pin = _pin(line)
        if pin is not None:
            if pin.name in pins:
                raise ConfigError(
                    f"{path}, line {number}: {pin.name!r} is pinned twice; remove one"
                )
            pins[pin.name] = pin
        elif line.strip() and not line.lstrip().startswith("#"):
            raise ConfigError(
                f"{path}, line {number} is damaged: expected name, fingerprint, sequence and day; "
                "restore the file from a backup, or remove the line"
            )
    return pins


def _pin(line: str) -> Pin | None:
    match = _LINE.fullmatch(line.strip())
    if match is None or line.lstrip().startswith("#"):
        return None
    name = unquote(match["name"])
    return Pin(name, match["fingerprint"], int(match["sequence"]), match["since"])


def _merge(lines: list[str], pins: dict[str, Pin]) -> list[str]:
    """Return the file's lines with the pins as they are now; all else stays."""
    merged, left = [], dict(pins)
    for line in lines:
        old = _pin(line)
        if old is None:
            merged.append(line)
            continue
        pin = left.pop(old.name, None)
        if pin == old:
            merged.append(line)
        elif pin is not None:
            match = _LINE.fullmatch(line.strip())
            merged.append(_line(pin) + (match["rest"] if match else ""))
    return merged + [_line(pin) for pin in left.values()]


def _line(pin: Pin) -> str:
    # Python's whitespace ends a line or a field for our own reader: all of it is escaped.
    name = _ESCAPED.sub(lambda found: "".join(f"%{b:02X}" for b in found[0].encode()), pin.name)
    return f"{name} {pin.fingerprint} {pin.sequence} {pin.since}"
