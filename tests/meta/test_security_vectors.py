"""The test vectors of docs/design/security.md are what the code does."""

from __future__ import annotations

import hashlib

import pytest

from repository import ROOT
from warpgate.hello.keys import KeyExchange, derive_seal_keys, updated_seal_key
from warpgate.hello.records import CLOSE, UPDATE, DatagramSeal, StreamSeal
from warpgate.hello.seal import AES_256_GCM, CHACHA20_POLY1305


def read_vectors() -> dict[str, bytes]:
    """Return the page's vectors by name."""
    page = (ROOT / "docs/design/security.md").read_text("utf-8")
    block = page.split("```text vectors\n", 1)[1].split("```", 1)[0]
    pairs = (line.rsplit(" = ", 1) for line in block.splitlines())
    return {name: bytes.fromhex(value) for name, value in pairs}


VECTORS = read_vectors()
THERE, BACK = VECTORS["key I>R"], VECTORS["key R>I"]
CIPHERS = {"AES": AES_256_GCM, "ChaCha": CHACHA20_POLY1305}
RECORDS = [name for name in VECTORS if name.startswith(("stream", "datagram"))]


class Impatient(StreamSeal):
    """Changes its key after one record of data."""

    max_records = 2


def test_keys() -> None:
    one, other = (KeyExchange(VECTORS[f"x25519 seed {side}"]) for side in "IR")
    secret = VECTORS["x25519 shared"]
    assert one.shared_secret(other.share) == other.shared_secret(one.share) == secret
    m1, m2 = VECTORS["M1"], VECTORS["M2"]
    assert VECTORS["salt"] == hashlib.sha256(m1 + m2).digest()
    keys = derive_seal_keys(secret, m1, m2)
    assert (keys.initiator_to_responder, keys.responder_to_initiator) == (THERE, BACK)
    assert updated_seal_key(THERE) == VECTORS["key I>R, updated"]


def test_streams() -> None:
    hello = VECTORS["plaintext"]
    sealed = StreamSeal(AES_256_GCM, THERE, BACK)
    assert sealed.encode(hello) == VECTORS["stream, AES, 0"]
    assert sealed.farewell() == VECTORS["stream, AES, 1, close"]
    changing = Impatient(CHACHA20_POLY1305, THERE, BACK)
    assert changing.encode(hello) == VECTORS["stream, ChaCha, 0"]
    update, data = VECTORS["stream, ChaCha, 1, update"], VECTORS["stream, ChaCha, 2^32"]
    assert changing.encode(hello) == update + data
    assert (update[0], VECTORS["stream, AES, 1, close"][0]) == (UPDATE, CLOSE)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_streams_are_opened(cipher: str) -> None:
    seal = StreamSeal(CIPHERS[cipher], BACK, THERE)
    names = [name for name in RECORDS if name.startswith(f"stream, {cipher}")]
    got = [data for name in names for data in seal.decode(VECTORS[name], None)]
    assert got == [VECTORS["plaintext"]] * (2 if cipher == "ChaCha" else 1)
    assert seal.ended == (cipher == "AES")


def test_datagrams() -> None:
    hello = VECTORS["plaintext"]
    aes = DatagramSeal(AES_256_GCM, BACK, THERE)
    assert aes.seal(hello) == VECTORS["datagram, AES, 0"]
    chacha = DatagramSeal(CHACHA20_POLY1305, BACK, THERE)
    assert chacha.seal(hello) == VECTORS["datagram, ChaCha, 0"]
    assert chacha.seal(b"\0" + b"A" * 15, 1) == VECTORS["datagram, ChaCha, 1, close"]
    assert aes.open(VECTORS["datagram, AES, 2^32"]) == hello


def test_every_vector_of_the_page_is_used() -> None:
    assert len(RECORDS) == 9
