from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate import TCP, UDP
from warpgate_plugin_direct.port_mapping import pcp
from warpgate_plugin_direct.port_mapping.model import MappingError

NONCE = bytes(range(12))

# Figures 2 and 9 of RFC 6887, filled in by hand.
MAP_REQUEST = bytes.fromhex(
    "02 01 0000 00001c20"  # version, MAP, reserved, lifetime 7200
    "00000000 00000000 0000ffff c0a80102"  # ::ffff:192.168.1.2
    "000102030405060708090a0b"  # nonce
    "06 000000 3039 3039"  # TCP, reserved, internal and suggested external port 12345
    "00000000 00000000 0000ffff 00000000"  # ::ffff:0.0.0.0
)
# Figures 3 and 10.
MAP_ANSWER = bytes.fromhex(
    "02 81 00 00 00000e10 00000064"  # version, MAP response, reserved, SUCCESS, 3600 s, epoch 100
    "00000000 00000000 00000000"
    "000102030405060708090a0b"
    "06 000000 3039 3040"
    "00000000 00000000 0000ffff cb007107"  # ::ffff:203.0.113.7
)


def parse(data: bytes, transport: int = TCP) -> pcp.MapAnswer | None:
    return pcp.parse_map(data, NONCE, transport, 12345)


def refusal(result: int, answer: bytes = MAP_ANSWER) -> bytes:
    return answer[:3] + bytes([result]) + answer[4:]


def test_a_map_request_is_the_rfcs() -> None:
    assert pcp.pack_map("192.168.1.2", NONCE, TCP, 12345, 12345, 7200) == MAP_REQUEST


def test_udp_over_ipv6() -> None:
    data = pcp.pack_map("2001:db8::5%eth0", NONCE, UDP, 1, 2, 3)
    assert data[8:24] == bytes.fromhex("20010db8000000000000000000000005")
    assert data[36] == 17
    assert data[44:] == bytes(16)  # any IPv6 address


def test_an_announce_request_is_a_header() -> None:
    data = pcp.pack_announce("192.168.1.2")
    assert data == b"\x02\x00\0\0\0\0\0\0" + bytes(10) + b"\xff\xff\xc0\xa8\x01\x02"


def test_an_answer() -> None:
    assert parse(MAP_ANSWER) == pcp.MapAnswer(100, 3600, "203.0.113.7", 12352)


def test_an_ipv6_answer() -> None:
    ip = bytes.fromhex("20010db8000000000000000000000005")
    found = parse(MAP_ANSWER[:44] + ip)
    assert found is not None
    assert found.external_ip == "2001:db8::5"


@pytest.mark.parametrize("unspecified", [bytes(16), bytes(10) + b"\xff\xff" + bytes(4)])
def test_no_external_address(unspecified: bytes) -> None:
    found = parse(MAP_ANSWER[:44] + unspecified)
    assert found is not None
    assert found.external_ip is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAP_ANSWER[:59],
        MAP_ANSWER[:56],
        MAP_ANSWER + b"\0",  # not a multiple of four
        MAP_REQUEST,  # our own, reflected
        MAP_ANSWER[:24] + bytes(12) + MAP_ANSWER[36:],  # another nonce
        MAP_ANSWER[:36] + b"\x11" + MAP_ANSWER[37:],  # another transport
        MAP_ANSWER[:40] + b"\0\1" + MAP_ANSWER[42:],  # another port
        MAP_ANSWER[:1] + b"\x80" + MAP_ANSWER[2:],  # another operation
        refusal(2)[:24] + bytes(12) + MAP_ANSWER[36:],  # a refusal to somebody else
    ],
)
def test_what_is_no_answer(data: bytes) -> None:
    assert parse(data) is None


@pytest.mark.parametrize(("result", "words"), list(pcp.RESULTS.items()))
def test_refusals(result: int, words: str) -> None:
    with pytest.raises(MappingError, match=rf"\({result}\)") as caught:
        parse(refusal(result))
    assert words in str(caught.value)
    assert caught.value.code == result
    assert caught.value.conflict == (result == 11)


def test_a_refusal_may_be_a_header_alone() -> None:
    with pytest.raises(MappingError, match="not authorized"):
        parse(refusal(2)[:24])


def test_options_behind_an_answer() -> None:
    assert parse(MAP_ANSWER + bytes(8)) == parse(MAP_ANSWER)


def test_a_nat_pmp_router_is_told() -> None:
    with pytest.raises(MappingError, match="NAT-PMP only"):
        pcp.parse_announce(bytes.fromhex("0080000100000064"))
    with pytest.raises(MappingError, match="PCP version 1 only"):
        parse(b"\x01" + refusal(1)[1:])


def test_announce_answers() -> None:
    answer = bytes.fromhex("0280000000000000000000070000000000000000 00000000")
    assert pcp.parse_announce(answer) == pcp.EpochAnswer(7)
    assert pcp.parse_announce(answer[:3] + b"\x04" + answer[4:]) == pcp.EpochAnswer(7)
    with pytest.raises(MappingError, match="not authorized"):
        pcp.parse_announce(answer[:3] + b"\x02" + answer[4:])
    assert pcp.parse_announce(MAP_ANSWER) is None


@given(st.binary(max_size=1200))
def test_nothing_else_comes_out(data: bytes) -> None:
    for parser in (parse, pcp.parse_announce):
        with contextlib.suppress(MappingError):
            parser(data)


@given(
    st.ip_addresses().map(str),
    st.binary(min_size=12, max_size=12),
    st.sampled_from([TCP, UDP]),
    st.integers(1, 65535),
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
)
def test_every_request_reads_as_it_was_made(
    ip: str, nonce: bytes, transport: int, internal: int, external: int, lease: int
) -> None:
    data = pcp.pack_map(ip, nonce, transport, internal, external, lease)
    assert len(data) == pcp.MAP_BYTES
    # An answer with the same fields (a server echoes them) is accepted.
    echoed = bytes([2, 0x81, 0, 0]) + data[4:8] + bytes(16) + data[24:]
    found = pcp.parse_map(echoed, nonce, transport, internal)
    assert found is not None
    assert (found.lease_s, found.external_port) == (lease, external)
