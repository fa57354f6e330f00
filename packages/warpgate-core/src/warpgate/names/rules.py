"""What a name may look like, and how a key is written for people. PURE.

A name is one to 63 letters, ASCII digits, ``.``, ``-`` and ``_``; it begins and ends with a letter or
digit. Case and Unicode composition don't matter: names are compared in lower case and NFC, as RFC
8265's UsernameCaseMapped profile has it. What could pass for another name is refused: characters that
NFKC would change, letters of several scripts (UTS #39's single-script restriction), and Cyrillic or
Greek names that consist of look-alikes of Latin letters only. Any other name that is not ASCII is shown
with its punycode form (RFC 3492) beside it.

A fingerprint is the base32 of the first 20 bytes of SHA-256 of a key: 32 characters, lower case. It
is also the last level of the topic of that key's records (WIRE.md section 6).
"""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from typing import Final

from warpgate.identity import node_id_bytes
from warpgate.protocol.peer_address import ADDRESS_TEXT_PREFIX
from warpgate.signalling.broker_policy import topic_hash

MAX_NAME_LENGTH: Final = 63

_FINGERPRINT: Final = re.compile(r"[a-z2-7]{32}")
_MARKS: Final = "._-"
_MIXES: Final = (
    frozenset({"CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}),
    frozenset({"CJK", "HANGUL"}),
    frozenset({"CJK", "BOPOMOFO"}),
)
"""Scripts that one writing system uses together."""
_LOOKALIKES: Final = {
    "CYRILLIC": frozenset("аеорсухіјѕһԁԛԝӏгпт"),
    "GREEK": frozenset("αγικνορτυχω"),
}
_LATIN: Final = (range(0x80, 0x250), range(0x1E00, 0x1F00))
"""Latin letters of living languages; the phonetic ones beyond imitate a to z."""


def fingerprint(key: bytes) -> str:
    """Return a public key's fingerprint, 32 characters."""
    return topic_hash(key)


def clean_name(text: str) -> str:
    """Return a name in the form in which it is compared, published and pinned.

    Raises:
        ValueError: it is no name; the text says which rule it breaks.

    """
    name = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise ValueError(f"a name has 1 to {MAX_NAME_LENGTH} characters, not {len(name)}")
    if unicodedata.normalize("NFKC", name) != name:
        raise ValueError("it has characters that only look like others (NFKC changes it)")
    for position, char in enumerate(name):
        _check_char(char, at_edge=position in (0, len(name) - 1), first=position == 0)
    _check_scripts(name)
    if name.startswith(ADDRESS_TEXT_PREFIX):
        raise ValueError(f"{ADDRESS_TEXT_PREFIX!r} begins an address")
    if is_node_id(name):
        raise ValueError("it is a node id")
    return name


def _check_char(char: str, at_edge: bool, first: bool) -> None:
    if char in _MARKS:
        if at_edge:
            raise ValueError("it begins or ends with a mark; letters and digits may")
        return
    kind = unicodedata.category(char)
    is_mark = kind in ("Mn", "Mc") and not first
    if not (kind.startswith("L") or is_mark or (char.isascii() and char.isdigit())):
        raise ValueError(
            f"the character U+{ord(char):04X} is none of letters, 0 to 9, '.', '-', '_'"
        )


def _check_scripts(name: str) -> None:
    letters = [char for char in name if unicodedata.category(char).startswith("L")]
    scripts = {unicodedata.name(char, "UNKNOWN").partition(" ")[0] for char in letters}
    if len(scripts) > 1 and not any(scripts <= mix for mix in _MIXES):
        raise ValueError(f"it mixes letters of several scripts ({', '.join(sorted(scripts))})")
    for char in letters:
        if scripts == {"LATIN"} and not (
            char.isascii() or any(ord(char) in block for block in _LATIN)
        ):
            raise ValueError(f"the letter U+{ord(char):04X} could pass for another Latin letter")
    for script, alike in _LOOKALIKES.items():
        if scripts == {script} and alike.issuperset(letters):
            raise ValueError(f"its {script.capitalize()} letters could all pass for Latin ones")


def split_full_name(text: str) -> tuple[str, str | None]:
    """Split ``name@fingerprint`` or ``name@node id``; the second part is a fingerprint or None."""
    name, at, tail = text.rpartition("@")
    if at and name:
        tail = tail.lower()
        if is_node_id(tail):
            return name, fingerprint(node_id_bytes(tail))
        if _FINGERPRINT.fullmatch(tail):
            return name, tail
    return text, None


def full_name(name: str, key: bytes) -> str:
    """Return ``name@fingerprint``, which needs no trust in anyone."""
    return f"{name}@{fingerprint(key)}"


def is_node_id(text: str) -> bool:
    """Return whether a text is a node id."""
    with suppress(ValueError):
        node_id_bytes(text)
        return True
    return False


def shown(name: str) -> str:
    """Return a name for people: quoted, and with its punycode form when it is not ASCII."""
    if name.isascii():
        return repr(name)
    return f"{name!r} (xn--{name.encode('punycode').decode('ascii')})"
