from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate import TCP, UDP
from warpgate_plugin_direct.port_mapping import nat_pmp
from warpgate_plugin_direct.port_mapping.model import MappingError

# RFC 6886 sections 3.2 and 3.3, filled in by hand.
ADDRESS = bytes.fromhex("00 80 0000 00000064 cb007107")
MAPPED = bytes.fromhex("00 82 0000 00000064 3039 3040 00000e10")


def parse(data: bytes) -> nat_pmp.MapAnswer | None:
    return nat_pmp.parse_map(data, TCP, 12345)


def test_requests_are_the_rfcs() -> None:
    assert nat_pmp.pack_address_request() == b"\0\0"
    tcp = nat_pmp.pack_map(TCP, 12345, 12352, 7200)
    assert tcp == bytes.fromhex("00 02 0000 3039 3040 00001c20")
    assert nat_pmp.pack_map(UDP, 12345) == bytes.fromhex("00 01 0000 3039 0000 00000000")


def test_answers() -> None:
    assert nat_pmp.parse_address(ADDRESS) == nat_pmp.AddressAnswer(100, "203.0.113.7")
    assert parse(MAPPED) == nat_pmp.MapAnswer(100, 12352, 3600)


def test_no_external_address() -> None:
    found = nat_pmp.parse_address(ADDRESS[:8] + bytes(4))
    assert found == nat_pmp.AddressAnswer(100, None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAPPED[:15],
        ADDRESS,
        nat_pmp.pack_map(TCP, 12345),  # our own, reflected
        b"\0\x81" + MAPPED[2:],  # for UDP
        MAPPED[:8] + b"\0\1" + MAPPED[10:],  # for another port
        b"\0\x82\0\2" + MAPPED[4:8] + b"\0\1" + MAPPED[10:],  # a refusal for another port
    ],
)
def test_what_is_no_answer(data: bytes) -> None:
    assert parse(data) is None


@pytest.mark.parametrize("data", [b"", ADDRESS[:11], MAPPED, b"\0\0"])
def test_what_is_no_address(data: bytes) -> None:
    assert nat_pmp.parse_address(data) is None


@pytest.mark.parametrize(("result", "words"), list(nat_pmp.RESULTS.items()))
def test_refusals(result: int, words: str) -> None:
    for data in (
        MAPPED[:3] + bytes([result]) + MAPPED[4:],
        bytes([0, 0x82, 0, result, 0, 0, 0, 1]),
    ):
        with pytest.raises(MappingError, match=rf"\({result}\)") as caught:
            parse(data)
        assert words in str(caught.value)
        assert caught.value.code == result


def test_a_pcp_server_that_knows_no_nat_pmp() -> None:
    with pytest.raises(MappingError, match="does not speak NAT-PMP"):
        nat_pmp.parse_address(bytes.fromhex("0280000100000000") + bytes(16))


@given(st.binary(max_size=64))
def test_nothing_else_comes_out(data: bytes) -> None:
    for parser in (parse, nat_pmp.parse_address):
        with contextlib.suppress(MappingError):
            parser(data)
