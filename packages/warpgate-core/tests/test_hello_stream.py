from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate.errors import (
    BadSignature,
    LocalProtocolError,
    MessageTooLarge,
    RemoteProtocolError,
    StaleMessage,
    UnknownMessage,
)
from warpgate.hello.machine import (
    HELLO_TIMEOUT_S,
    MAX_STREAM_LEFTOVER,
    Event,
    Failed,
    Hello,
    Initiator,
    Nominated,
    NonceCache,
    Proven,
    Responder,
    State,
)
from warpgate.hello.messages import M0, M1, M2, M3, PREFIX, SIGNAL, frame, pack_m0, unpack_m1

# A busy machine must not fail a test: hypothesis times each example otherwise.
untimed = settings(deadline=None)

WIRE = Path(__file__).parent / "wire"
PLUGIN_ID = "abcDEF012345678"
OTHER_ID = "zzzzzzzzzzzzzzz"
ADDR = ("192.0.2.1", 5)


class Keys:
    def __init__(self, number: int) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        self.public_key = self._private.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)


ALICE, BOB, EVE = Keys(1), Keys(2), Keys(3)


def seeded(label: str) -> Callable[[int], bytes]:
    """Entropy that differs from call to call and is the same in every run."""
    count = 0

    def entropy(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.sha256(f"{label} {count}".encode()).digest()[:size]

    return entropy


def initiator(**changes: Any) -> Initiator:
    options: dict[str, Any] = {
        "identity": ALICE,
        "peer": BOB.public_key,
        "plugin_id": PLUGIN_ID,
        "datagram": False,
        "entropy": seeded("alice"),
        "nonces": NonceCache(),
        "allow": lambda _peer, _plugin_id: True,
    }
    return Initiator(**{**options, **changes})


def responder(**changes: Any) -> Responder:
    options: dict[str, Any] = {
        "identity": BOB,
        "peer": None,
        "plugin_id": None,
        "datagram": False,
        "entropy": seeded("bob"),
        "nonces": NonceCache(),
        "allow": lambda _peer, _plugin_id: True,
    }
    return Responder(**{**options, **changes})


def started(machine: Any, now: float = 0.0) -> Any:
    machine.start(now)
    return machine


def feed(machine: Hello, data: bytes, now: float = 0.0) -> bytes:
    machine.receive(data, ADDR, now)
    return b"".join(machine.outgoing(now))


def events(machine: Hello) -> list[Event]:
    found = []
    while (event := machine.next_event()) is not None:
        found.append(event)
    return found


def failure(machine: Hello) -> RemoteProtocolError:
    found = events(machine)
    assert len(found) == 1
    assert isinstance(found[0], Failed)
    assert machine.state is State.FAILED
    assert machine.outgoing(0.0) == []
    assert machine.leftover() == []
    assert machine.next_timeout() is None
    return found[0].cause


def transcript(**options: Any) -> tuple[Initiator, Responder, bytes, bytes, bytes]:
    """Return both machines after a whole hello, and M1, M2, M3 as the stream had them."""
    a, b = started(initiator(**options)), started(responder(**options))
    m1 = b"".join(a.outgoing(0.0))
    m2 = feed(b, m1)
    assert feed(a, m2) == b""
    a.nominate(0.0)
    m3 = b"".join(a.outgoing(0.0))
    assert feed(b, m3) == b""
    return a, b, m1, m2, m3


def in_state(state: State) -> Hello:
    """Return a stream's machine in that state, its events taken."""
    machine: Hello
    _, _, m1, m2, _ = transcript()
    if state in (State.WAIT_M1, State.WAIT_M3):
        machine = started(responder())
        if state is State.WAIT_M3:
            feed(machine, m1)
    else:
        machine = started(initiator())
        machine.outgoing(0.0)
        if state in (State.PROVEN, State.NOMINATED):
            feed(machine, m2)
        if state is State.NOMINATED:
            assert isinstance(machine, Initiator)
            machine.nominate(0.0)
            machine.outgoing(0.0)
        if state is State.FAILED:
            feed(machine, b"no hello")
    events(machine)
    assert machine.state is state
    return machine


def test_a_whole_hello_proves_both_and_leaves_equal_keys() -> None:
    a, b, *_ = transcript()
    assert events(a) == [Proven(BOB.public_key, PLUGIN_ID, (), 1), Nominated()]
    assert events(b) == [Proven(ALICE.public_key, PLUGIN_ID, (), 1), Nominated()]
    assert a.keys == b.keys
    assert a.keys.initiator_to_responder != a.keys.responder_to_initiator
    assert a.next_timeout() is b.next_timeout() is None
    assert a.leftover() == b.leftover() == []


def test_capabilities_reach_the_other_side() -> None:
    a = started(initiator(capabilities=("seal", "aes")))
    b = started(responder(capabilities=("chacha",)))
    feed(a, feed(b, b"".join(a.outgoing(0.0))))
    a.nominate(0.0)
    feed(b, b"".join(a.outgoing(0.0)))
    assert events(a)[0] == Proven(BOB.public_key, PLUGIN_ID, ("chacha",), 1)
    assert events(b)[0] == Proven(ALICE.public_key, PLUGIN_ID, ("seal", "aes"), 1)


def test_two_hellos_never_share_a_key() -> None:
    one = transcript()[0].keys
    a, b = started(initiator(entropy=seeded("x"))), started(responder())
    feed(a, feed(b, b"".join(a.outgoing(0.0))))
    assert not {a.keys.initiator_to_responder, a.keys.responder_to_initiator} & {
        one.initiator_to_responder,
        one.responder_to_initiator,
    }


def test_keys_are_not_to_be_had_before_the_proof() -> None:
    a, b = started(initiator()), started(responder())
    m2 = feed(b, b"".join(a.outgoing(0.0)))
    for machine in (a, b):
        with pytest.raises(LocalProtocolError, match="keys"):
            _ = machine.keys
    feed(a, m2)
    assert a.keys
    feed(a, b"too early")
    with pytest.raises(LocalProtocolError, match="keys"):
        _ = a.keys


def test_golden_transcript() -> None:
    golden = json.loads((WIRE / "hello_stream.json").read_text())
    a, b, *wire = transcript(capabilities=("seal",))
    assert [data.hex() for data in wire] == [golden["m1"], golden["m2"], golden["m3"]]
    assert frame(M0, pack_m0(PLUGIN_ID)).hex() == golden["m0"]
    for machine in (a, b):
        assert machine.keys.initiator_to_responder.hex() == golden["initiator_to_responder"]
        assert machine.keys.responder_to_initiator.hex() == golden["responder_to_initiator"]


def test_the_bytes_by_hand() -> None:
    """The specification once more, without any of the code under test."""
    golden = json.loads((WIRE / "hello_stream.json").read_text())
    alice, bob = seeded("alice"), seeded("bob")
    nonce_i, x_i = alice(32), X25519PrivateKey.from_private_bytes(alice(32))
    nonce_r, x_r = bob(32), X25519PrivateKey.from_private_bytes(bob(32))
    share_i, share_r = x_i.public_key().public_bytes_raw(), x_r.public_key().public_bytes_raw()
    magic = bytes.fromhex("d757470d0a1af1")

    def pack(*elements: object) -> bytes:
        return bytes(msgpack.packb(list(elements)))

    def stream(kind: int, body: bytes) -> str:
        return (magic + bytes([kind]) + len(body).to_bytes(2, "big") + body).hex()

    m1 = pack(1, PLUGIN_ID, ALICE.public_key, BOB.public_key, nonce_i, share_i, ["seal"])
    m2 = pack(1, PLUGIN_ID, BOB.public_key, ALICE.public_key, nonce_r, share_r, ["seal"])
    both = magic + b"\x01" + m1 + magic + b"\x02" + m2
    digest = hashlib.sha256(both).digest()
    sig_r = BOB.sign(b"warpgate hello v1R" + digest)
    sig_i = ALICE.sign(b"warpgate hello v1I" + digest)
    assert stream(0, pack(PLUGIN_ID)) == golden["m0"]
    assert stream(1, m1) == golden["m1"]
    assert stream(2, m2 + sig_r) == golden["m2"]
    assert stream(3, sig_i) == golden["m3"]

    secret = x_i.exchange(X25519PublicKey.from_public_bytes(share_r))
    extracted = hmac.digest(hashlib.sha256(both + sig_r).digest(), secret, "sha256")
    for name, direction in (("initiator_to_responder", b"I>R"), ("responder_to_initiator", b"R>I")):
        key = hmac.digest(extracted, b"warpgate seal v1" + direction + b"\x01", "sha256")
        assert key.hex() == golden[name]


def cuts(data: bytes) -> Iterable[list[bytes]]:
    yield [data[i : i + 1] for i in range(len(data))]
    for i in range(len(data) + 1):
        yield [data[:i], data[i:]]


def test_cut_at_every_byte() -> None:
    _, _, m1, m2, _ = transcript()
    for pieces in cuts(m1):
        b = started(responder())
        assert b"".join(feed(b, piece) for piece in pieces) == m2
    for pieces in cuts(frame(M0, pack_m0(PLUGIN_ID)) + m2):
        a = started(initiator())
        for piece in pieces:
            a.receive(piece, ADDR, 0.0)
        assert [type(event) for event in events(a)] == [Proven]


def test_m3_merged_with_data_and_cut_at_every_byte() -> None:
    _, _, m1, _, m3 = transcript()
    for pieces in cuts(m3 + PREFIX + b" and so on"):
        b = started(responder())
        feed(b, m1)
        received = b""
        for piece in pieces:
            feed(b, piece)
            received += b"".join(b.leftover())
        assert [type(event) for event in events(b)] == [Proven, Nominated]
        assert received == PREFIX + b" and so on"
        assert b.leftover() == []


def test_nothing_is_left_over_before_the_nomination() -> None:
    b = in_state(State.WAIT_M3)
    feed(b, PREFIX[:3])
    assert b.leftover() == []


def test_the_user_data_after_the_nomination_has_a_cap_and_is_never_cut() -> None:
    a = in_state(State.NOMINATED)
    a.receive(bytes(MAX_STREAM_LEFTOVER), ADDR, 0.0)
    with pytest.raises(LocalProtocolError, match="leftover"):
        a.receive(b"x", ADDR, 0.0)
    assert a.leftover() == [bytes(MAX_STREAM_LEFTOVER)]
    a.receive(b"x", ADDR, 0.0)
    assert a.leftover() == [b"x"]


def test_an_announcing_responder_speaks_first() -> None:
    b = started(responder(peer=ALICE.public_key, plugin_id=PLUGIN_ID, announce=True))
    m0 = b"".join(b.outgoing(0.0))
    assert m0 == frame(M0, pack_m0(PLUGIN_ID))
    a = started(initiator())
    m1 = b"".join(a.outgoing(0.0))
    assert feed(a, m0) == b""
    feed(a, feed(b, m1))
    assert a.state is State.PROVEN


@pytest.mark.parametrize("body", [pack_m0(OTHER_ID), b"", b"\xc0"])
def test_an_m0_for_another_attempt_fails(body: bytes) -> None:
    a = started(initiator())
    feed(a, frame(M0, body))
    assert isinstance(failure(a), RemoteProtocolError)


def test_a_second_m0_fails() -> None:
    a = started(initiator())
    feed(a, frame(M0, pack_m0(PLUGIN_ID)) * 2)
    assert isinstance(failure(a), UnknownMessage)


STREAM_TABLE = {
    (State.WAIT_M1, M1): State.WAIT_M3,
    (State.WAIT_M3, M3): State.NOMINATED,
    (State.WAIT_M2, M0): State.WAIT_M2,
    (State.WAIT_M2, M2): State.PROVEN,
    **{(State.NOMINATED, kind): State.NOMINATED for kind in (M0, M1, M2, M3, SIGNAL)},
}


@pytest.mark.parametrize("kind", [M0, M1, M2, M3, SIGNAL])
@pytest.mark.parametrize("state", [state for state in State if state is not State.IDLE])
def test_every_message_in_every_state(state: State, kind: int) -> None:
    _, _, m1, m2, m3 = transcript()
    valid = {M0: frame(M0, pack_m0(PLUGIN_ID)), M1: m1, M2: m2, M3: m3, SIGNAL: frame(SIGNAL, b"x")}
    machine = in_state(state)
    machine.receive(valid[kind], ADDR, 0.0)
    assert machine.state is STREAM_TABLE.get((state, kind), State.FAILED)
    terminal = [event for event in events(machine) if not isinstance(event, Proven)]
    ended = machine.state in (State.FAILED, State.NOMINATED) and machine.state is not state
    assert len(terminal) == ended
    if state is State.NOMINATED:
        assert machine.leftover() == [valid[kind]]


def test_before_the_start_nothing_works() -> None:
    for machine in (initiator(), responder()):
        assert machine.state is State.IDLE
        with pytest.raises(LocalProtocolError, match="start"):
            machine.receive(b"", ADDR, 0.0)
        assert machine.outgoing(0.0) == []
        assert machine.next_timeout() is None
        machine.handle_timeout(1e9)
        assert machine.next_event() is None
        machine.start(0.0)
        with pytest.raises(LocalProtocolError, match="started before"):
            machine.start(0.0)


def test_only_a_proven_pipe_is_nominated_and_only_once() -> None:
    a = started(initiator())
    a.outgoing(0.0)
    with pytest.raises(LocalProtocolError, match="proven"):
        a.nominate(0.0)
    feed(a, transcript()[3])
    a.nominate(0.0)
    a.nominate(0.0)
    assert len(a.outgoing(0.0)) == 1
    assert [type(event) for event in events(a)] == [Proven, Nominated]


@pytest.mark.parametrize("together", [True, False])
def test_a_responder_that_speaks_before_the_nomination_fails(together: bool) -> None:
    m2 = transcript()[3]
    a = started(initiator())
    a.outgoing(0.0)
    for data in [m2 + b"x"] if together else [m2, b"x"]:
        a.receive(data, ADDR, 0.0)
    found = events(a)
    assert [type(event) for event in found] == ([Failed] if together else [Proven, Failed])
    a.nominate(0.0)
    assert a.outgoing(0.0) == []
    assert events(a) == []


@pytest.mark.parametrize("state", [State.WAIT_M1, State.WAIT_M2, State.WAIT_M3, State.PROVEN])
def test_the_deadline_covers_the_whole_hello(state: State) -> None:
    machine = in_state(state)
    assert machine.next_timeout() == HELLO_TIMEOUT_S
    machine.handle_timeout(HELLO_TIMEOUT_S - 0.001)
    assert machine.next_event() is None
    assert machine.outgoing(0.0) == []
    machine.handle_timeout(HELLO_TIMEOUT_S)
    assert str(failure(machine)) == f"timed out waiting for {state.value}"


def test_what_comes_after_the_deadline_is_too_late() -> None:
    _, _, m1, m2, m3 = transcript()
    for state, data in ((State.WAIT_M1, m1), (State.WAIT_M2, m2), (State.WAIT_M3, m3)):
        machine = in_state(state)
        assert feed(machine, data, HELLO_TIMEOUT_S) == b""
        assert "timed out" in str(failure(machine))
    a = in_state(State.PROVEN)
    assert isinstance(a, Initiator)
    a.nominate(HELLO_TIMEOUT_S)
    assert "timed out" in str(failure(a))


def test_the_deadline_can_be_set() -> None:
    assert started(responder(timeout_s=0.5), 7.0).next_timeout() == 7.5


def m1_of(**changes: Any) -> bytes:
    return b"".join(started(initiator(**changes)).outgoing(0.0))


def refused(data: bytes, **changes: Any) -> RemoteProtocolError:
    b = started(responder(**changes))
    assert feed(b, data) == b""
    return failure(b)


def test_m1_is_checked() -> None:
    assert "another node" in str(refused(m1_of(peer=EVE.public_key)))
    assert "another peer" in str(refused(m1_of(identity=EVE), peer=ALICE.public_key))
    assert "another attempt" in str(refused(m1_of(), plugin_id=OTHER_ID))
    assert "may not connect" in str(refused(m1_of(), allow=lambda _peer, _plugin_id: False))
    assert isinstance(refused(frame(M1, bytes(1024))), RemoteProtocolError)
    assert isinstance(refused(PREFIX + b"\x01\xff\xff"), MessageTooLarge)
    assert isinstance(refused(b"GET /"), RemoteProtocolError)


def test_an_own_m1_that_is_reflected_is_refused_by_either_role() -> None:
    a = started(initiator())
    m1 = b"".join(a.outgoing(0.0))
    feed(a, m1)
    assert isinstance(failure(a), UnknownMessage)
    assert "another node" in str(refused(m1, identity=ALICE))
    fields = msgpack.unpackb(m1[10:])
    fields[3] = ALICE.public_key
    body = bytes(msgpack.packb(fields))
    assert "this node itself" in str(refused(frame(M1, body), identity=ALICE))


def test_allow_is_asked_with_the_claimed_peer_and_attempt() -> None:
    asked: list[tuple[bytes, str]] = []

    def allow(peer: bytes, plugin_id: str) -> bool:
        asked.append((peer, plugin_id))
        return True

    assert feed(started(responder(allow=allow)), m1_of())
    assert asked == [(ALICE.public_key, PLUGIN_ID)]


def test_a_replayed_m1_is_refused() -> None:
    nonces = NonceCache()
    m1 = m1_of()
    assert feed(started(responder(nonces=nonces)), m1)
    assert isinstance(refused(m1, nonces=nonces), StaleMessage)


def test_a_refused_m1_uses_up_no_nonce() -> None:
    nonces = NonceCache()
    refused(m1_of(), nonces=nonces, allow=lambda _peer, _plugin_id: False)
    assert len(nonces) == 0


def test_a_replayed_m2_or_m3_does_not_verify() -> None:
    _, _, _, m2, m3 = transcript()
    a, b = started(initiator(entropy=seeded("x"))), started(responder(entropy=seeded("y")))
    feed(b, b"".join(a.outgoing(0.0)))
    feed(a, m2)
    assert isinstance(failure(a), BadSignature)
    feed(b, m3)
    assert isinstance(failure(b), BadSignature)


def test_a_repeated_responder_nonce_is_refused() -> None:
    nonces = NonceCache()
    for expected in (State.PROVEN, State.FAILED):
        a, b = started(initiator(nonces=nonces)), started(responder())
        feed(a, feed(b, b"".join(a.outgoing(0.0))))
        assert a.state is expected
    assert isinstance(failure(a), StaleMessage)


def test_the_nonce_cache_is_bounded_and_forgets_the_oldest() -> None:
    nonces = NonceCache(3)
    assert [nonces.use(bytes([n])) for n in (1, 2, 3, 1, 4, 4)] == [True] * 3 + [False, True, False]
    assert len(nonces) == 3
    assert nonces.use(b"\x01")
    assert not nonces.use(b"\x03")


def altered(data: bytes, kind: int, position: int, value: object) -> bytes:
    """Return a message with one field changed; a signature stays what it was."""
    body = data[10:]
    signature = body[-64:] if kind == M2 else b""
    fields = msgpack.unpackb(body[:-64] if kind == M2 else body)
    fields[position] = value
    return frame(kind, bytes(msgpack.packb(fields)) + signature)


@pytest.mark.parametrize(
    ("position", "value", "cause"),
    [
        (0, 2, UnknownMessage),
        (0, 0, UnknownMessage),
        (1, OTHER_ID, RemoteProtocolError),
        (2, EVE.public_key, RemoteProtocolError),
        (3, EVE.public_key, RemoteProtocolError),
        (4, bytes(32), BadSignature),
        (5, bytes(range(32)), BadSignature),
        (6, ["seal"], BadSignature),
    ],
)
def test_an_altered_m2_fails(position: int, value: object, cause: type[Exception]) -> None:
    m2 = transcript()[3]
    a = started(initiator())
    a.outgoing(0.0)
    feed(a, altered(m2, M2, position, value))
    assert type(failure(a)) is cause


@pytest.mark.parametrize(("position", "value"), [(4, bytes(32)), (5, bytes([9] * 32)), (6, ["x"])])
def test_an_altered_m1_is_noticed_by_its_sender(position: int, value: object) -> None:
    a, b = started(initiator()), started(responder())
    m2 = feed(b, altered(b"".join(a.outgoing(0.0)), M1, position, value))
    feed(a, m2)
    assert isinstance(failure(a), BadSignature)


def test_another_version_in_m1_is_refused() -> None:
    for version in (0, 2):
        error = refused(altered(m1_of(), M1, 0, version))
        assert isinstance(error, UnknownMessage)
        assert f"version {version}" in str(error)


@pytest.mark.parametrize("share", [bytes(32), b"\x01" + bytes(31)])
def test_shares_of_low_order_are_refused_by_both(share: bytes) -> None:
    nonces = NonceCache()
    assert "share" in str(refused(altered(m1_of(), M1, 5, share), nonces=nonces))
    assert len(nonces) == 0

    # A responder that signs such a share: only the share itself gives it away.
    a = started(initiator())
    m1 = b"".join(a.outgoing(0.0))
    body = [1, PLUGIN_ID, BOB.public_key, ALICE.public_key, b"n" * 32, share, []]
    feed(a, m2_signed_by(BOB, m1, body))
    assert "share" in str(failure(a))


def m2_signed_by(keys: Keys, m1: bytes, fields: list[Any]) -> bytes:
    unsigned = bytes(msgpack.packb(fields))
    digest = hashlib.sha256(m1[:8] + m1[10:] + PREFIX + b"\x02" + unsigned).digest()
    return frame(M2, unsigned + keys.sign(b"warpgate hello v1R" + digest))


def test_the_roles_signatures_are_not_interchangeable() -> None:
    a, b = started(initiator()), started(responder())
    m1 = b"".join(a.outgoing(0.0))
    m2 = feed(b, m1)
    digest = hashlib.sha256(m1[:8] + m1[10:] + m2[:8] + m2[10:-64]).digest()
    feed(b, frame(M3, ALICE.sign(b"warpgate hello v1R" + digest)))
    assert isinstance(failure(b), BadSignature)


@pytest.mark.parametrize("shown", ["bob's id", "eve's id"])
def test_a_man_in_the_middle_with_own_keys_fails_at_the_signature(shown: str) -> None:
    """Eve ends both exchanges herself; she can sign with her key only."""
    a, b = started(initiator()), started(responder())
    m1 = b"".join(a.outgoing(0.0))
    share = X25519PrivateKey.from_private_bytes(b"e" * 32).public_key().public_bytes_raw()
    to_bob = altered(m1, M1, 5, share)
    m2 = feed(b, to_bob)

    sender = BOB.public_key if shown == "bob's id" else EVE.public_key
    fields = [1, PLUGIN_ID, sender, ALICE.public_key, b"n" * 32, share, []]
    feed(a, m2_signed_by(EVE, m1, fields))
    cause = failure(a)
    assert isinstance(cause, BadSignature) == (shown == "bob's id")

    digest = hashlib.sha256(to_bob[:8] + to_bob[10:] + m2[:8] + m2[10:-64]).digest()
    feed(b, frame(M3, EVE.sign(b"warpgate hello v1I" + digest)))
    assert isinstance(failure(b), BadSignature)


@pytest.mark.parametrize("flip", [0x01, 0x80])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_any_byte_of_any_message_changed(which: int, flip: int) -> None:
    """Whoever receives or answers a changed message never takes the other for proven."""
    wire = transcript()[2:]
    for position in range(len(wire[which])):
        changed = bytearray(wire[which])
        changed[position] ^= flip
        a, b = started(initiator()), started(responder())
        a.outgoing(0.0)
        m2 = feed(b, bytes(changed) if which == 0 else wire[0])
        feed(a, bytes(changed) if which == 1 else m2)
        if a.state is State.PROVEN:
            assert which == 2
            a.nominate(0.0)
            a.outgoing(0.0)
            feed(b, bytes(changed))
        for machine in (a, b):
            machine.handle_timeout(HELLO_TIMEOUT_S)
        assert b.state is State.FAILED
        assert (a.state is State.NOMINATED) == (which == 2)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_truncated_messages_time_out_and_nothing_more(which: int) -> None:
    wire = transcript()[2:]
    for length in range(len(wire[which])):
        machine = in_state([State.WAIT_M1, State.WAIT_M2, State.WAIT_M3][which])
        assert feed(machine, wire[which][:length]) == b""
        assert machine.next_event() is None
        machine.handle_timeout(HELLO_TIMEOUT_S)
        assert "timed out" in str(failure(machine))


@untimed
@given(
    st.sampled_from([State.WAIT_M1, State.WAIT_M2, State.WAIT_M3]),
    st.lists(st.binary(), max_size=5),
)
def test_garbage_only_ever_fails_a_hello(state: State, pieces: list[bytes]) -> None:
    machine = in_state(state)
    for piece in pieces:
        machine.receive(piece, ADDR, 0.0)
    machine.handle_timeout(HELLO_TIMEOUT_S)
    assert isinstance(failure(machine), RemoteProtocolError)


@untimed
@given(st.sampled_from([State.WAIT_M1, State.WAIT_M2, State.WAIT_M3]), st.data())
def test_a_mutated_transcript_never_raises_and_ends_once(state: State, data: st.DataObject) -> None:
    _, _, m1, m2, m3 = transcript()
    pieces = st.sampled_from([m1, m2, m3, frame(M0, pack_m0(PLUGIN_ID)), PREFIX, b"x"])
    stream = bytearray(b"".join(data.draw(st.lists(pieces, max_size=4))))
    for position in data.draw(st.lists(st.integers(0, 800), max_size=3)):
        if position < len(stream):
            stream[position] = data.draw(st.integers(0, 255))
    machine = in_state(state)
    machine.receive(bytes(stream), ADDR, 0.0)
    machine.handle_timeout(HELLO_TIMEOUT_S)
    terminal = [event for event in events(machine) if not isinstance(event, Proven)]
    assert len(terminal) == 1
    if isinstance(terminal[0], Nominated):
        assert bytes(stream).startswith({State.WAIT_M1: m1 + m3, State.WAIT_M3: m3}[state])


def test_arguments_are_checked() -> None:
    for changes in (
        {"peer": None},
        {"peer": b"short"},
        {"peer": ALICE.public_key},
        {"plugin_id": None},
        {"plugin_id": "short"},
        {"announce": True},
        {"capabilities": ("a" * 17,)},
    ):
        with pytest.raises(LocalProtocolError):
            initiator(**changes)
    for changes in ({"announce": True}, {"plugin_id": "no"}, {"capabilities": ("a" * 17,)}):
        with pytest.raises(LocalProtocolError):
            responder(**changes)


def test_a_listener_can_look_into_m1_first() -> None:
    m1 = m1_of(capabilities=("seal",))
    fields = unpack_m1(m1[10:])
    assert (fields.sender, fields.receiver) == (ALICE.public_key, BOB.public_key)
    assert (fields.plugin_id, fields.capabilities) == (PLUGIN_ID, ("seal",))
