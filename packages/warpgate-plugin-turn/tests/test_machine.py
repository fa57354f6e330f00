"""The allocation's machine against a server of a few lines, without a socket or a clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from warpgate.errors import AllocationExpired, AllocationRefused, RelayError
from warpgate.net.constants import IP6
from warpgate.stun.attributes import (
    ALTERNATE_SERVER,
    NONCE,
    REALM,
    USERNAME,
    ErrorCode,
)
from warpgate.stun.message import Message, MessageClass, decode, encode, long_term_key
from warpgate_plugin_turn import errors, wire
from warpgate_plugin_turn.grants import MAX_CHANNELS, MAX_PERMISSIONS
from warpgate_plugin_turn.machine import State
from warpgate_plugin_turn.machine_events import (
    Allocated,
    Closed,
    Failed,
    Incoming,
    PeerData,
    Permitted,
    Refused,
)
from warpgate_plugin_turn.requests import MAX_CHALLENGES

PEER = ("203.0.113.10", 5000)
KEY = long_term_key("user", "realm", "secret")
Make = Callable[..., Any]


def failure(server: Any) -> RelayError:
    (event,) = server.events
    assert isinstance(event, Failed)
    assert server.machine.state is State.ENDED
    assert server.machine.next_timeout() is None
    return event.error


def test_it_allocates_with_long_term_credentials(allocated: Make) -> None:
    server = allocated()
    first, second = server.asked
    assert first.get(USERNAME) is None
    assert (second.get(USERNAME), second.get(REALM), second.get(NONCE)) == ("user", "realm", "one")
    assert second.authenticated(KEY)
    assert first.transaction_id != second.transaction_id
    assert second.get(wire.REQUESTED_TRANSPORT) == 17
    assert second.get(wire.REQUESTED_ADDRESS_FAMILY) is None  # old servers know no other than IPv4


def test_an_ipv6_relay_is_asked_for_and_checked(make: Make) -> None:
    server = make(family=IP6)
    server.step()
    assert server.asked[0].get(wire.REQUESTED_ADDRESS_FAMILY) == IP6
    assert "is not IPv6" in str(failure(server))  # this server gives an IPv4 one


def test_a_stale_nonce_is_replaced_wherever_it_shows(allocated: Make) -> None:
    server = allocated()
    server.nonce = "two"
    server.machine.permit(PEER[0], server.now)
    server.step()
    assert server.events == [Permitted(PEER[0])]
    assert [request.get(NONCE) for request in server.asked[-2:]] == ["one", "two"]


def test_a_server_that_calls_every_nonce_stale(make: Make) -> None:
    server = make()
    server.answer = lambda request: server.reply(  # type: ignore[method-assign]
        request, ErrorCode(438, "Stale Nonce"), challenge=True, key=None
    )
    sent = 0
    for _ in range(20):
        for data in server.machine.outgoing(0.0):
            sent += 1
            answer = server.answer(decode(data, wire.TURN_ATTRIBUTES))
            assert answer is not None
            server.machine.receive(answer, ("", 0), 0.0)
    server.step()
    assert sent == MAX_CHALLENGES + 1
    assert "every nonce stale" in str(failure(server))


def test_a_wrong_password(make: Make) -> None:
    server = make(password="wrong")
    server.step()
    error = failure(server)
    assert isinstance(error, errors.WrongCredentials)
    assert "turn.test" in str(error)
    assert "wrong" not in str(error)
    assert len(server.asked) == 2  # no third try with the same password


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (403, errors.Forbidden, "forbids"),
        (437, AllocationRefused, "this very socket"),
        (440, errors.NotSupported, "family"),
        (441, errors.WrongCredentials, "other credentials"),
        (442, errors.NotSupported, "transport"),
        (486, errors.QuotaReached, "quota"),
        (508, errors.CapacityReached, "no room"),
        (500, AllocationRefused, "refused"),
    ],
)
def test_each_refusal_is_an_error_of_its_own(code: int, kind: type, words: str, make: Make) -> None:
    server = make()
    server.errors[wire.ALLOCATE] = ErrorCode(code, "the reason\x1b[2J")
    server.step()
    error = failure(server)
    assert type(error) is kind
    assert words in str(error)
    assert f"{code} the reason" in str(error)
    assert "\x1b" not in str(error)


def test_an_alternate_server(make: Make) -> None:
    server = make()
    server.errors[wire.ALLOCATE] = ErrorCode(300, "Try Alternate")
    server.extra = [(ALTERNATE_SERVER, ("192.0.2.99", 3478))]
    server.step()
    error = failure(server)
    assert isinstance(error, errors.Redirected)
    assert error.alternate == ("192.0.2.99", 3478)


def loses(seed: int) -> Callable[[], bool]:
    dice = random.Random(seed)
    return lambda: dice.random() < 0.3


def test_losses_are_made_up_for(make: Make) -> None:
    for seed in range(20):
        server = make()
        server.lose = loses(seed)
        server.step()
        server.run(6.0)
        assert server.events
        if isinstance(server.events[0], Allocated):
            continue
        assert isinstance(server.events[0].error, errors.ServerUnreachable)
    server = make()
    dropped = iter([True, False])
    server.lose = lambda: next(dropped, False)
    server.step()
    assert server.events == []
    server.run(0.26)
    assert isinstance(server.events[0], Allocated)


def test_on_a_stream_nothing_is_sent_twice(make: Make) -> None:
    server = make(reliable=True)
    server.deaf = True
    assert len(server.machine.outgoing(0.0)) == 1
    server.run(2.9)
    assert server.machine.outgoing(2.9) == []
    server.run(3.1)
    assert isinstance(failure(server), errors.ServerUnreachable)


def test_a_silent_server(make: Make) -> None:
    server = make()
    server.deaf = True
    server.run(2.99)
    assert server.events == []
    server.run(3.01)
    error = failure(server)
    assert isinstance(error, errors.ServerUnreachable)
    assert "turn.test did not answer within 3 s" in str(error)


def test_a_server_that_dies_is_noticed_within_seconds(allocated: Make) -> None:
    server = allocated()
    server.run(100.0)
    assert server.events == []
    server.deaf = True
    server.run(107.5)
    assert isinstance(failure(server), errors.ServerSilent)


def test_a_server_that_forgot_is_noticed_within_seconds(allocated: Make) -> None:
    server = allocated()
    server.run(100.0)
    server.errors[wire.REFRESH] = ErrorCode(437, "Allocation Mismatch")
    server.run(105.0)
    error = failure(server)
    assert isinstance(error, AllocationExpired)
    assert "restarted" in str(error)


def test_an_idle_one_is_probed_less_often_until_it_is_used(allocated: Make) -> None:
    server = allocated(probe_s=4.0)
    server.machine.probe_every(25.0)
    server.run(20.0)
    assert server.count(wire.REFRESH) == 0
    server.machine.probe_every(None)
    server.run(20.1)  # at once, since it has been silent for so long
    assert server.count(wire.REFRESH) == 1
    server.run(24.2)
    assert server.count(wire.REFRESH) == 2


def test_what_comes_in_is_sign_enough_of_life(allocated: Make) -> None:
    server = allocated(probe_s=4.0)
    server.machine.bind(PEER, 0.0)
    server.step()
    before = server.count(wire.REFRESH)
    for tick in range(300):
        server.run(tick * 1.0)
        message = wire.channel_data(0x4000, b"data", padded=False)
        assert server.machine.receive_channel(message, server.now) == (PEER, b"data")
    assert server.count(wire.REFRESH) == before


def test_everything_is_renewed_while_only_receiving(allocated: Make) -> None:
    server = allocated(permission_lifetime_s=30.0, channel_lifetime_s=60.0, probe_s=1e9)
    server.machine.bind(PEER, 0.0)
    server.machine.permit(PEER[0], 0.0)
    server.step()
    last = {wire.REFRESH: 0.0, wire.CREATE_PERMISSION: 0.0, wire.CHANNEL_BIND: 0.0}
    limit = {wire.REFRESH: 600.0, wire.CREATE_PERMISSION: 30.0, wire.CHANNEL_BIND: 60.0}
    seen = len(server.asked)
    for tick in range(2000):
        server.run(tick * 1.0)
        for request in server.asked[seen:]:
            last[request.method] = server.now
        seen = len(server.asked)
        for method, at in last.items():
            assert server.now - at < limit[method] * 0.75
    assert server.events == [Permitted(PEER[0])]


def test_a_lost_renewal_is_repeated_in_time(allocated: Make) -> None:
    server = allocated(permission_lifetime_s=300.0)
    server.machine.permit(PEER[0], 0.0)
    server.step()
    server.run(179.0)
    before = server.count(wire.CREATE_PERMISSION)
    lost = iter([True, True, True])
    server.lose = lambda: next(lost, False)
    server.run(184.0)
    assert server.count(wire.CREATE_PERMISSION) > before
    assert not any(isinstance(event, Refused) for event in server.events)


def test_a_refused_permission_names_the_address(allocated: Make) -> None:
    server = allocated()
    server.errors[wire.CREATE_PERMISSION] = ErrorCode(403, "Forbidden IP")
    server.machine.permit(PEER[0], 0.0)
    server.step()
    (event,) = server.events
    assert isinstance(event, Refused)
    assert event.ip == PEER[0]
    assert isinstance(event.error, errors.Forbidden)
    assert server.machine.state is State.ALLOCATED


def test_a_renewal_of_several_finds_the_one_to_blame(allocated: Make) -> None:
    server = allocated(permission_lifetime_s=30.0, probe_s=1e9)
    ips = ["203.0.113.1", "203.0.113.2", "203.0.113.3"]
    for ip in ips:
        server.machine.permit(ip, 0.0)
    server.step()
    server.events.clear()
    plain = server.answer

    def answer(request: Message) -> bytes | None:
        # The codec keeps the first of several addresses: the renewal of all begins with the first.
        found = request.get(wire.XOR_PEER_ADDRESS)
        several = len(request._raw) > 100
        bad = request.method == wire.CREATE_PERMISSION and (several or found[0] == ips[1])
        if bad and request.authenticated(KEY):
            return server.reply(request, ErrorCode(403, "Forbidden IP"))
        return plain(request)

    server.answer = answer  # type: ignore[method-assign]
    server.run(20.0)
    assert [(type(event), event.ip) for event in server.events] == [(Refused, ips[1])]


def test_data_goes_by_indication_and_then_by_channel(allocated: Make) -> None:
    server = allocated()
    first = decode(server.machine.message_for(b"one", PEER), wire.TURN_ATTRIBUTES)
    assert (first.method, first.message_class) == (wire.SEND, MessageClass.INDICATION)
    assert first.get(wire.XOR_PEER_ADDRESS) == PEER
    assert first.get(wire.DATA_ATTRIBUTE) == b"one"
    server.machine.bind(PEER, 0.0)
    server.step()
    assert server.machine.message_for(b"two", PEER) == b"\x40\x00\x00\x03two"


def test_a_stream_pads_channel_data(allocated: Make) -> None:
    server = allocated(reliable=True)
    server.machine.bind(PEER, 0.0)
    server.step()
    assert server.machine.message_for(b"two", PEER) == b"\x40\x00\x00\x03two\0"


def test_a_channel_that_fails_leaves_indications(allocated: Make) -> None:
    server = allocated()
    server.errors[wire.CHANNEL_BIND] = ErrorCode(400, "Bad Request")
    server.machine.bind(PEER, 0.0)
    server.step()
    assert not wire.is_channel_data(server.machine.message_for(b"data", PEER))
    assert server.machine.counters["turn_channel_refused"] == 1


def test_data_that_comes_in(allocated: Make) -> None:
    server = allocated()
    server.machine.receive(indication(wire.DATA, (wire.DATA_ATTRIBUTE, b"data")), ("", 0), 1.0)
    server.machine.receive(
        indication(wire.CONNECTION_ATTEMPT, (wire.CONNECTION_ID, 7)), ("", 0), 1.0
    )
    server.step()
    assert server.events == [PeerData(PEER, b"data"), Incoming(7, PEER)]


def indication(method: int, *attributes: tuple[int, Any]) -> bytes:
    return encode(
        method,
        MessageClass.INDICATION,
        b"0123456789ab",
        [(wire.XOR_PEER_ADDRESS, PEER), *attributes],
        table=wire.TURN_ATTRIBUTES,
    )


def test_closing_deletes_the_allocation(allocated: Make) -> None:
    server = allocated()
    server.machine.close(1.0)
    server.step()
    assert server.asked[-1].method == wire.REFRESH
    assert server.asked[-1].get(wire.LIFETIME) == 0
    assert server.events == [Closed()]
    assert server.machine.next_timeout() is None


def test_closing_does_not_wait_for_a_dead_server(allocated: Make) -> None:
    server = allocated()
    server.deaf = True
    server.machine.close(1.0)
    server.run(2.4)
    assert server.events == []
    server.run(2.6)
    assert server.events == [Closed()]


def test_caps(allocated: Make) -> None:
    server = allocated()
    granted = [server.machine.permit(f"203.0.113.{n}", 0.0) for n in range(MAX_PERMISSIONS + 1)]
    assert granted == [True] * MAX_PERMISSIONS + [False]
    bound = [server.machine.bind((PEER[0], n + 1), 0.0) for n in range(MAX_CHANNELS + 1)]
    assert bound == [True] * MAX_CHANNELS + [False]
