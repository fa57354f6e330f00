"""What a name may look like, and how keys are written for people."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate.identity import Identity
from warpgate.names.record import name_topic
from warpgate.names.rules import clean_name, fingerprint, full_name, shown, split_full_name

ALICE = Identity.from_bytes(bytes(range(64)))
PRINT = fingerprint(ALICE.public_key)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("alice", "alice"),
        ("Alice-2.home_pc", "alice-2.home_pc"),
        ("a", "a"),
        ("x" * 63, "x" * 63),
        ("Jose\N{COMBINING ACUTE ACCENT}", "jos\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ("\u00c5ngstr\u00f6m", "\u00e5ngstr\u00f6m"),
        ("\u0438\u0432\u0430\u043d", "\u0438\u0432\u0430\u043d"),
        ("\u5c71\u7530\u305f\u308d\u3046", "\u5c71\u7530\u305f\u308d\u3046"),
        ("\u041a\u0410\u0422\u042f", "\u043a\u0430\u0442\u044f"),
        ("\u0928\u092e\u0938\u094d\u0924\u0947", "\u0928\u092e\u0938\u094d\u0924\u0947"),
    ],
)
def test_names(text, name):
    assert clean_name(text) == name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "1 to 63 characters, not 0"),
        ("x" * 64, "1 to 63 characters, not 64"),
        ("al ice", r"U\+0020"),
        ("al@ice", r"U\+0040"),
        ("al/ice", r"U\+002F"),
        ("al\x00ice", r"U\+0000"),
        ("al\u200bice", r"U\+200B"),
        ("al\u202eice", r"U\+202E"),
        ("alice\U0001f600", r"U\+1F600"),
        ("\u0301alice", r"U\+0301"),
        ("al\u0663ce", r"U\+0663"),
        (".alice", "begins or ends with a mark"),
        ("alice-", "begins or ends with a mark"),
        ("\uff41lice", "NFKC"),
        ("\ufb01sh", "NFKC"),
        ("\u0430lice", "several scripts .CYRILLIC, LATIN"),
        ("alice\u03bf", "several scripts .GREEK, LATIN"),
        ("\u0441\u043e\u0441\u043e", "pass for Latin"),
        ("\u03b1\u03bf", "pass for Latin"),
        ("\u0251lice", r"U\+0251 could pass"),
        ("wg1_abc", "begins an address"),
        ("WG1_abc", "begins an address"),
        (ALICE.node_id, "node id"),
    ],
)
def test_what_is_no_name(text, why):
    with pytest.raises(ValueError, match=why):
        clean_name(text)


@given(st.text(max_size=70))
def test_a_clean_name_is_its_own(text):
    try:
        name = clean_name(text)
    except ValueError:
        return
    assert clean_name(name) == name
    assert clean_name(name.upper()) == name or name.upper().lower() != name
    assert name == unicodedata.normalize("NFKC", name)
    assert name.isprintable()
    assert len(name.encode()) <= 255
    assert "@" not in name


def test_full_names():
    assert full_name("alice", ALICE.public_key) == f"alice@{PRINT}"
    assert name_topic("alice", ALICE.public_key).endswith(f"/{PRINT}")
    assert split_full_name(f"alice@{PRINT}") == ("alice", PRINT)
    assert split_full_name(f"alice@{PRINT.upper()}") == ("alice", PRINT)
    assert split_full_name(f"alice@{ALICE.node_id}") == ("alice", PRINT)
    for text in ("alice", "alice@", f"@{PRINT}", "alice@example.org", f"alice@{PRINT[1:]}"):
        assert split_full_name(text) == (text, None)


def test_a_name_beyond_ascii_is_shown_in_punycode_too():
    assert shown("alice") == "'alice'"
    assert shown("b\u00fccher") == "'b\u00fccher' (xn--bcher-kva)"
