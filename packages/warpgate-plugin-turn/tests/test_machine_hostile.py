"""What reaches the allocation's machine and is not from the server, or not as it should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate.stun.attributes import (
    ErrorCode,
)
from warpgate.stun.message import MessageClass, decode, encode, long_term_key
from warpgate_plugin_turn import wire
from warpgate_plugin_turn.machine import State
from warpgate_plugin_turn.machine_events import (
    Permitted,
)

FINGERPRINT_BYTES = 8  # behind the signature, where nothing counts
PEER = ("203.0.113.10", 5000)
KEY = long_term_key("user", "realm", "secret")
Make = Callable[..., Any]


def unsigned(server: Any, **options: Any) -> bytes:
    """Return an answer to the pending request, without knowing the key."""
    (data,) = server.machine.outgoing(server.now)
    return server.reply(decode(data, wire.TURN_ATTRIBUTES), key=None, **options)


def test_an_unsigned_success_counts_for_nothing(make: Make, allocated: Make) -> None:
    server = make()
    server.machine.receive(unsigned(server), ("", 0), 0.0)  # before any key is known
    assert server.machine.next_event() is None
    assert server.machine.counters["turn_unauthenticated"] == 1
    server = allocated()
    server.machine.permit(PEER[0], 0.0)
    server.machine.receive(unsigned(server), ("", 0), 0.0)
    assert server.machine.next_event() is None
    assert server.machine.counters["turn_unauthenticated"] == 1


def test_a_success_signed_with_another_key_counts_for_nothing(allocated: Make) -> None:
    server = allocated()
    server.machine.permit(PEER[0], 0.0)
    (data,) = server.machine.outgoing(0.0)
    forged = server.reply(decode(data, wire.TURN_ATTRIBUTES), key=b"another key")
    server.machine.receive(forged, ("", 0), 0.0)
    assert server.machine.next_event() is None


def test_an_unsigned_refusal_ends_nothing(allocated: Make) -> None:
    server = allocated()
    server.run(4.5)
    server.deaf = True
    server.machine.handle_timeout(9.0)
    answer = unsigned(server, error=ErrorCode(437, "Allocation Mismatch"))
    server.machine.receive(answer, ("", 0), 9.0)
    assert server.machine.next_event() is None
    assert server.machine.state is State.ALLOCATED
    assert server.machine.counters["turn_unauthenticated"] == 1


def test_a_duplicate_answer_is_counted(allocated: Make) -> None:
    server = allocated()
    server.machine.permit(PEER[0], 0.0)
    (data,) = server.machine.outgoing(0.0)
    answer = server.reply(decode(data, wire.TURN_ATTRIBUTES))
    server.machine.receive(answer, ("", 0), 0.0)
    server.machine.receive(answer, ("", 0), 0.0)
    server.step()
    assert server.events == [Permitted(PEER[0])]
    assert server.machine.counters["turn_unexpected"] == 1


def test_an_answer_of_another_method(allocated: Make) -> None:
    server = allocated()
    server.machine.permit(PEER[0], 0.0)
    (data,) = server.machine.outgoing(0.0)
    request = decode(data, wire.TURN_ATTRIBUTES)
    wrong = encode(
        wire.CHANNEL_BIND, MessageClass.SUCCESS, request.transaction_id, key=KEY,
        table=wire.TURN_ATTRIBUTES,
    )  # fmt: skip
    server.machine.receive(wrong, ("", 0), 0.0)
    assert server.machine.next_event() is None
    assert server.machine.counters["turn_wrong_method"] == 1


def test_an_unknown_channel_is_counted(allocated: Make) -> None:
    server = allocated()
    message = wire.channel_data(0x4005, b"data", padded=False)
    assert server.machine.receive_channel(message, 0.0) is None
    assert server.machine.receive_channel(b"\x40\x00\x00\x09", 0.0) is None
    assert server.machine.counters["turn_unknown_channel"] == 1
    assert server.machine.counters["turn_malformed"] == 1


@settings(max_examples=300)
@given(datagrams=st.lists(st.binary(max_size=120), max_size=6), done=st.booleans())
def test_garbage_never_raises(
    datagrams: list[bytes], done: bool, make: Make, allocated: Make
) -> None:
    server = allocated() if done else make()
    server.step()
    for data in datagrams:
        server.machine.receive(data, ("", 0), server.now)
        server.machine.receive(
            b"\x01\x03\x00" + bytes((len(data) // 4 * 4,)) + b"\x21\x12\xa4\x42" + data,
            ("", 0),
            server.now,
        )
    server.step()
    assert server.machine.state is State.ALLOCATED
    server.machine.permit(PEER[0], server.now)
    server.step()
    assert Permitted(PEER[0]) in server.events


@settings(max_examples=200)
@given(place=st.integers(0, 400), flip=st.integers(1, 255))
def test_an_altered_answer_never_counts(place: int, flip: int, allocated: Make) -> None:
    server = allocated()
    server.machine.permit(PEER[0], 0.0)
    (data,) = server.machine.outgoing(0.0)
    answer = bytearray(server.reply(decode(data, wire.TURN_ATTRIBUTES)))
    answer[place % (len(answer) - FINGERPRINT_BYTES)] ^= flip
    server.machine.receive(bytes(answer), ("", 0), 0.0)
    assert server.machine.next_event() is None
