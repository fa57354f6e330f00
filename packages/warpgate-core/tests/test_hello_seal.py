"""Who seals with whom, and by which cipher; nobody on the path can change it."""

from __future__ import annotations

import os

import msgpack
import pytest

from warpgate.errors import RemoteProtocolError
from warpgate.hello import seal
from warpgate.hello.machine import Failed, Initiator, Nominated, NonceCache, Proven, Responder
from warpgate.hello.messages import M1, M2, Deframer, frame, message, parse_datagram
from warpgate.hello.seal import AES_256_GCM, CHACHA20_POLY1305, agreed_cipher, mismatch, offered
from warpgate.identity import Identity

SETTINGS = ["require", "prefer", "off"]
ALICE, BOB = Identity.generate(), Identity.generate()
PLUGIN_ID = "A" * 15


@pytest.mark.parametrize("a", SETTINGS)
@pytest.mark.parametrize("b", SETTINGS)
@pytest.mark.parametrize("aes", [(False, False), (False, True), (True, False), (True, True)])
def test_both_sides_find_the_same(a, b, aes):
    one, other = offered(a, aes=aes[0]), offered(b, aes=aes[1])
    assert agreed_cipher(one, other) == agreed_cipher(other, one)
    assert (mismatch(one, other) is None) == (mismatch(other, one) is None)
    if {a, b} == {"require", "off"}:
        assert mismatch(one, other) is not None
    elif "off" in (a, b):
        assert (agreed_cipher(one, other), mismatch(one, other)) == (None, None)
    else:
        assert mismatch(one, other) is None
        assert agreed_cipher(one, other) == (AES_256_GCM if all(aes) else CHACHA20_POLY1305)


def test_the_errors_name_the_mend():
    off, require = offered("off", aes=True), offered("require", aes=True)
    assert "the peer does not seal" in (text := mismatch(require, off) or "")
    assert 'conf["seal"] to "require" or "prefer" there, or to "prefer" here' in text
    assert "the peer requires sealed pipes" in (text := mismatch(off, require) or "")
    assert 'set it to "require" or "prefer"' in text


def test_a_peer_of_an_older_version_is_no_sealing_one():
    assert mismatch(offered("require", aes=False), ()) is not None
    assert agreed_cipher(offered("prefer", aes=False), ("something", "new")) is None


@pytest.mark.parametrize(("aes_s", "chacha_s"), [(1, 3), (3, 1)])
def test_the_quicker_cipher_is_measured(monkeypatch, aes_s, chacha_s):
    now = [0.0]

    def made(seconds):
        class Aead:
            def __init__(self, key):
                pass

            def encrypt(self, *_):
                now[0] += seconds

        return Aead

    monkeypatch.setattr(seal, "AESGCM", made(aes_s))
    monkeypatch.setattr(seal, "ChaCha20Poly1305", made(chacha_s))
    assert seal.aes_is_quicker(lambda: now[0]) == (aes_s < chacha_s)


class Hellos:
    """Both machines, and a path between them that may change what passes."""

    def __init__(self, a, b, *, datagram, change=lambda kind, body: body):
        common = {
            "plugin_id": PLUGIN_ID,
            "datagram": datagram,
            "entropy": os.urandom,
            "nonces": NonceCache(),
        }
        self.datagram, self.change = datagram, change
        self.a = Initiator(identity=ALICE, peer=BOB.public_key, capabilities=a, **common)
        allow = lambda peer, plugin_id: True  # noqa: E731
        self.b = Responder(identity=BOB, peer=None, capabilities=b, allow=allow, **common)
        self.events = {self.a: [], self.b: []}
        self.sent = []
        for machine in (self.b, self.a):
            machine.start(0.0)

    def pass_on(self, data):
        if self.datagram:
            kind, body = parse_datagram(data)
            return message(kind, self.change(kind, body))
        deframer = Deframer()
        deframer.feed(data)
        kind, body = deframer.next()
        return frame(kind, self.change(kind, body))

    def run(self):
        for _ in range(4):
            for sender, receiver in ((self.a, self.b), (self.b, self.a)):
                for data in sender.outgoing(0.0):
                    self.sent.append(data)
                    receiver.receive(self.pass_on(data), None, 0.0)
                for machine in (sender, receiver):
                    while (event := machine.next_event()) is not None:
                        self.events[machine].append(event)
                        if isinstance(event, Proven) and machine is self.a:
                            self.a.nominate(0.0)
        return self

    def over(self, machine):
        return [type(event) for event in self.events[machine]]


@pytest.mark.parametrize("datagram", [False, True])
@pytest.mark.parametrize("a", ["require", "prefer"])
@pytest.mark.parametrize("b", ["require", "prefer"])
def test_a_hello_leaves_keys_and_a_cipher(a, b, datagram):
    hellos = Hellos(offered(a, aes=True), offered(b, aes=False), datagram=datagram).run()
    assert hellos.over(hellos.a) == hellos.over(hellos.b) == [Proven, Nominated]
    assert hellos.a.cipher == hellos.b.cipher == CHACHA20_POLY1305
    assert hellos.a.keys == hellos.b.keys
    assert len(hellos.sent) == 3  # no further message


@pytest.mark.parametrize("datagram", [False, True])
def test_off_leaves_no_cipher(datagram):
    hellos = Hellos((), offered("prefer", aes=True), datagram=datagram).run()
    assert (hellos.a.cipher, hellos.b.cipher) == (None, None)
    assert hellos.over(hellos.b) == [Proven, Nominated]


@pytest.mark.parametrize("datagram", [False, True])
@pytest.mark.parametrize(("a", "b"), [("require", "off"), ("off", "require")])
def test_require_and_off_fail_with_the_reason_at_both_ends(a, b, datagram):
    hellos = Hellos(offered(a, aes=True), offered(b, aes=True), datagram=datagram).run()
    (failed,) = hellos.events[hellos.a]
    assert isinstance(failed, Failed)  # at once, also on datagrams
    assert 'conf["seal"]' in str(failed.cause)
    assert 'conf["seal"]' in str(hellos.b.mismatch)
    assert hellos.events[hellos.b] == []
    hellos.b.handle_timeout(5.0)
    assert hellos.b.next_event() == Failed(hellos.b.mismatch)


@pytest.mark.parametrize("datagram", [False, True])
def test_a_responder_takes_no_nomination_from_who_does_not_seal(datagram):
    """An initiator that does not know that it must not go on."""
    hellos = Hellos((), offered("require", aes=True), datagram=datagram)
    hellos.a._match = lambda capabilities: None
    hellos.run()
    assert hellos.over(hellos.a) == [Proven, Nominated]
    (failed,) = hellos.events[hellos.b]
    assert isinstance(failed, Failed)
    assert isinstance(failed.cause, RemoteProtocolError)
    assert "does not seal" in str(failed.cause)


def without(*names):
    """Return a change of M1 and M2 that leaves capabilities out."""

    def change(kind, body, which=None):
        if kind not in (M1, M2):
            return body
        unsigned, signature = (body[:-64], body[-64:]) if kind == M2 else (body, b"")
        fields = msgpack.unpackb(unsigned)
        fields[6] = [name for name in fields[6] if name not in names]
        if kind == M1 and len(fields) > 7:
            fields[7] += bytes(len(unsigned) - len(msgpack.packb(fields)))
        return msgpack.packb(fields) + signature

    return change


@pytest.mark.parametrize("datagram", [False, True])
@pytest.mark.parametrize("which", [(M1,), (M2,), (M1, M2)])
@pytest.mark.parametrize("names", [("seal", "seal-required", "aes"), ("seal",), ("aes",)])
@pytest.mark.parametrize("setting", ["require", "prefer"])
def test_no_downgrade(setting, names, which, datagram):
    strip = without(*names)
    hellos = Hellos(
        offered(setting, aes=True),
        offered(setting, aes=True),
        datagram=datagram,
        change=lambda kind, body: strip(kind, body) if kind in which else body,
    ).run()
    assert Nominated not in hellos.over(hellos.a) + hellos.over(hellos.b)


def test_the_change_that_the_downgrade_tests_make_is_well_formed():
    """Else they would only show that garbage is refused."""
    hellos = Hellos((), offered("prefer", aes=True), datagram=True, change=without()).run()
    assert hellos.over(hellos.b) == [Proven, Nominated]
