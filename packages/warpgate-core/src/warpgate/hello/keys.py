"""The hello's cryptography: transcript, signatures, key exchange and the keys it leaves for sealing.

Authenticated Diffie-Hellman in the form of ISO/IEC 9798-3: both identities and both shares stand
under both signatures. ``M1`` and ``M2`` here are ``magic ‖ body`` without a stream's length, so a
transcript is the same on both transports.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from warpgate.errors import RemoteProtocolError

ROLE_INITIATOR = b"I"
ROLE_RESPONDER = b"R"

_HELLO_CONTEXT = b"warpgate hello v1"
_SEAL_CONTEXT = b"warpgate seal v1"
_INITIATOR_TO_RESPONDER = b"I>R"
_RESPONDER_TO_INITIATOR = b"R>I"
_UPDATE_CONTEXT = b"warpgate seal v1 update"
_KEY_SIZE = 32


@dataclass(frozen=True, slots=True)
class SealKeys:
    """One key of 32 bytes per direction; ``repr`` shows neither."""

    initiator_to_responder: bytes = field(repr=False)
    responder_to_initiator: bytes = field(repr=False)


class KeyExchange:
    """One side's ephemeral X25519 key, for one hello; ``share`` is its public half, 32 bytes."""

    def __init__(self, seed: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(seed)
        self.share = self._private.public_key().public_bytes_raw()

    def shared_secret(self, peer_share: bytes) -> bytes:
        """Return the secret of 32 bytes that both sides compute.

        Raises:
            RemoteProtocolError: the peer's share is of low order, which would make the secret all
                zeros (RFC 7748 section 6.1).

        """
        try:
            secret = self._private.exchange(X25519PublicKey.from_public_bytes(peer_share))
        except ValueError as error:
            raise RemoteProtocolError("the peer's X25519 share can't be used") from error
        if not any(secret):
            raise RemoteProtocolError("the peer's X25519 share is of low order")
        return secret


def signed_data(role: bytes, m1: bytes, m2_unsigned: bytes) -> bytes:
    """Return what ``role`` signs: context, role and the hash of M1 and of M2 without its signature."""
    return _HELLO_CONTEXT + role + hashlib.sha256(m1 + m2_unsigned).digest()


def signature_holds(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Say whether ``signature`` (64 bytes) over ``data`` is by the Ed25519 key ``public_key``."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def derive_seal_keys(secret: bytes, m1: bytes, m2: bytes) -> SealKeys:
    """Return the keys for sealing (HKDF-SHA256, RFC 5869).

    The salt is ``SHA-256(M1 ‖ M2)`` over the whole M2, its signature included: the keys are then
    bound to the responder's proof as well.
    """
    salt = hashlib.sha256(m1 + m2).digest()

    def key(direction: bytes) -> bytes:
        hkdf = HKDF(SHA256(), length=_KEY_SIZE, salt=salt, info=_SEAL_CONTEXT + direction)
        return hkdf.derive(secret)

    return SealKeys(key(_INITIATOR_TO_RESPONDER), key(_RESPONDER_TO_INITIATOR))


def updated_seal_key(key: bytes) -> bytes:
    """Return the key of 32 bytes that follows ``key`` in its direction (HKDF-SHA256, RFC 5869)."""
    return HKDF(SHA256(), length=_KEY_SIZE, salt=None, info=_UPDATE_CONTEXT).derive(key)
