from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate.protocol.con_id import PLUGIN_ID_ALPHABET, PLUGIN_ID_LENGTH, valid_plugin_id


def test_constants():
    assert PLUGIN_ID_LENGTH == 15
    assert len(set(PLUGIN_ID_ALPHABET)) == len(PLUGIN_ID_ALPHABET) == 62


@pytest.mark.parametrize("text", ["abcdefghij12345", "A" * 15, "0" * 15])
def test_valid(text):
    assert valid_plugin_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a" * 14,
        "a" * 16,
        "abcdefghij1234\n",
        "abcdefghij1234-",
        "abcdefghij1234é",
        None,
        15,
        b"a" * 15,
        ["a"] * 15,
        "\uff11" * 15,
    ],
)
def test_invalid(text):
    assert not valid_plugin_id(text)


@given(st.text(max_size=20) | st.text(PLUGIN_ID_ALPHABET, min_size=13, max_size=17))
def test_is_what_the_wire_format_says(text):
    assert valid_plugin_id(text) == bool(re.fullmatch(r"[A-Za-z0-9]{15}", text))
