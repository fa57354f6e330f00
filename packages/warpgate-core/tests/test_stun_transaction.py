from __future__ import annotations

import itertools
from typing import Any

import pytest

from warpgate.stun import attributes as att
from warpgate.stun.attributes import ErrorCode
from warpgate.stun.message import BINDING, MessageClass, decode, encode
from warpgate.stun.transaction import MAX_TRANSACTIONS, Volley

A, B = ("192.0.2.20", 3478), ("192.0.2.21", 3478)
MAPPED = ("198.51.100.10", 4711)


def volley(**options: Any) -> Volley:
    numbers = itertools.count(1)
    return Volley(entropy=lambda n: next(numbers).to_bytes(n, "big"), **options)


def answer(request: bytes, mapped: Any = MAPPED, **options: Any) -> bytes:
    more = options.pop("more", [])
    kind = options.pop("kind", MessageClass.SUCCESS)
    wanted = [] if mapped is None else [(att.XOR_MAPPED_ADDRESS, mapped)]
    return encode(BINDING, kind, decode(request).transaction_id, [*wanted, *more], **options)


def test_retransmission_follows_rfc_8489() -> None:
    machine = volley()
    it = machine.ask(A, 0.0)
    times = []
    while (now := machine.timer()) is not None:
        if machine.datagrams_to_send(now):
            times.append(now)
    assert times == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert now is None
    assert it.over
    assert it.error == "no answer"
    assert machine.finished(39.5)
    assert it._next == 39.5


def test_the_same_bytes_are_sent_again() -> None:
    machine = volley(rto_s=0.1)
    machine.ask(A, 0.0)
    assert machine.datagrams_to_send(0.0) == machine.datagrams_to_send(0.1)
    assert machine.datagrams_to_send(0.15) == []


def test_the_first_answer_wins_and_the_others_get_a_grace() -> None:
    machine = volley(grace_s=0.05)
    slow, quick = machine.ask(A, 0.0), machine.ask(B, 0.0)
    requests = {server: data for data, server in machine.datagrams_to_send(0.0)}
    assert not machine.finished(1.0)
    assert machine.receive(answer(requests[B]), B, 0.02)
    assert quick.mapped == MAPPED
    assert quick.rtt_s == pytest.approx(0.02)
    assert not machine.finished(0.06)
    assert machine.finished(0.071)
    assert machine.receive(answer(requests[A], ("198.51.100.10", 4712)), A, 0.06)
    assert slow.mapped == ("198.51.100.10", 4712)
    assert machine.answers == [quick, slow]
    assert machine.finished(0.06)


def test_an_error_response_ends_its_transaction_only() -> None:
    machine = volley()
    bad, good = machine.ask(A, 0.0), machine.ask(B, 0.0)
    requests = {server: data for data, server in machine.datagrams_to_send(0.0)}
    refused = answer(
        requests[A], None, kind=MessageClass.ERROR,
        more=[(att.ERROR_CODE, ErrorCode(300, "Try\x1b[31m there")), (att.ALTERNATE_SERVER, B)],
    )  # fmt: skip
    machine.receive(refused, A, 0.1)
    assert bad.error == "error 300 Try[31m there"
    assert bad.alternate_server == B
    assert not machine.finished(5.0)
    assert [server for _, server in machine.datagrams_to_send(0.5)] == [B]
    machine.receive(answer(requests[B]), B, 0.6)
    assert good.mapped == MAPPED


def test_unknown_attributes_of_a_420_are_named() -> None:
    machine = volley()
    it = machine.ask(A, 0.0, change=6)
    ((request, _),) = machine.datagrams_to_send(0.0)
    assert decode(request).get(att.CHANGE_REQUEST) == 6
    more = [(att.ERROR_CODE, ErrorCode(420)), (att.UNKNOWN_ATTRIBUTES, (3,))]
    machine.receive(answer(request, None, kind=MessageClass.ERROR, more=more), A, 0.1)
    assert it.error == "error 420 (0x0003)"


HOSTILE = {
    "stun-wrong-source": lambda request: (answer(request), ("192.0.2.66", 3478)),
    "stun-reflected": lambda request: (request, A),
    "stun-oversized": lambda request: (answer(request, more=[(att.PADDING, bytes(3000))]), A),
    "stun-bad-fingerprint": lambda request: (answer(request)[:-1] + b"?", A),
    "stun-malformed": lambda request: (request[:20] + b"\0\0", A),
    "stun-wrong-method": lambda request: (
        encode(3, MessageClass.SUCCESS, decode(request).transaction_id),
        A,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_counted_and_change_nothing(name: str) -> None:
    machine = volley()
    it = machine.ask(A, 0.0)
    ((request, _),) = machine.datagrams_to_send(0.0)
    data, source = HOSTILE[name](request)
    assert machine.receive(data, source, 0.1)
    assert machine.counters == {name: 1}
    assert not it.over
    assert machine.receive(answer(request), A, 0.2)
    assert it.mapped == MAPPED


def test_other_data_is_left_to_its_owner() -> None:
    machine = volley()
    machine.ask(A, 0.0)
    ((request, _),) = machine.datagrams_to_send(0.0)
    stranger = encode(BINDING, MessageClass.SUCCESS, b"other number", [])
    for data in (
        b"",
        b"hello",
        b"\0" * 40,
        stranger,
        request[:4] + b"\0" + request[5:],
        request[:19],
    ):
        assert not machine.receive(data, A, 0.1)
    assert machine.counters == {}


def test_a_second_answer_is_swallowed() -> None:
    machine = volley()
    it = machine.ask(A, 0.0)
    ((request, _),) = machine.datagrams_to_send(0.0)
    machine.receive(answer(request), A, 0.1)
    assert machine.receive(answer(request, ("203.0.113.1", 1)), A, 0.2)
    assert it.mapped == MAPPED
    assert machine.counters == {"stun-duplicate": 1}


def test_with_change_request_the_answer_may_come_from_elsewhere() -> None:
    machine = volley()
    it = machine.ask(A, 0.0, change=att.CHANGE_IP)
    ((request, _),) = machine.datagrams_to_send(0.0)
    machine.receive(answer(request), B, 0.1)
    assert it.source == B
    assert it.mapped == MAPPED


def test_answers_without_use() -> None:
    machine = volley()
    none, needy = machine.ask(A, 0.0), machine.ask(B, 0.0)
    requests = {server: data for data, server in machine.datagrams_to_send(0.0)}
    machine.receive(answer(requests[A], None), A, 0.1)
    assert none.error == "the answer names no mapped address"
    needs = encode(BINDING, MessageClass.SUCCESS, needy.transaction_id, [(0x7777, b"")],
                   table={0x7777: att.ATTRIBUTES[att.PADDING]})  # fmt: skip
    machine.receive(needs, B, 0.1)
    assert needy.mapped is None
    assert "0x7777" in needy.error
    assert machine.finished(0.1)


def test_an_old_servers_plain_address_is_taken() -> None:
    machine = volley()
    it = machine.ask(A, 0.0)
    ((request, _),) = machine.datagrams_to_send(0.0)
    machine.receive(answer(request, None, more=[(att.MAPPED_ADDRESS, MAPPED)]), A, 0.1)
    assert it.mapped == MAPPED


def test_reliable_is_sent_once_and_the_volley_has_a_cap() -> None:
    machine = volley(reliable=True, rto_s=1.0, last_wait=1)
    for _ in range(MAX_TRANSACTIONS):
        machine.ask(A, 0.0)
    with pytest.raises(ValueError, match="at most"):
        machine.ask(A, 0.0)
    assert len(machine.datagrams_to_send(0.0)) == MAX_TRANSACTIONS
    assert machine.datagrams_to_send(1.0) == []
    assert machine.timer() is None
