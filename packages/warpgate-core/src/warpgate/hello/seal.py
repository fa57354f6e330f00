"""Whether a pipe is sealed, and by which cipher: both sides find the same in what both have signed.

Capabilities: ``seal``, this side can and will; ``seal-required``, it takes no pipe that is not
sealed; ``aes``, its machine is quicker with AES than without.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

SEAL = "seal"
SEAL_REQUIRED = "seal-required"
AES = "aes"

AES_256_GCM = "AES-256-GCM"
CHACHA20_POLY1305 = "ChaCha20-Poly1305"

_TRIALS = 8
_TRIAL_BYTES = 1 << 14


def offered(setting: str, *, aes: bool) -> tuple[str, ...]:
    """Return the capabilities to offer.

    Args:
        setting: ``conf["seal"]``: ``"require"``, ``"prefer"`` or ``"off"``.
        aes: whether AES-256-GCM is the quicker cipher on this machine.

    """
    if setting == "off":
        return ()
    required = (SEAL_REQUIRED,) if setting == "require" else ()
    return (SEAL, *required, *((AES,) if aes else ()))


def agreed_cipher(own: Collection[str], peers: Collection[str]) -> str | None:
    """Return the cipher's name, None for a pipe that is not sealed.

    AES needs both: on a machine without instructions for it, it is slow and its time tells of the key.
    """
    if SEAL not in own or SEAL not in peers:
        return None
    return AES_256_GCM if AES in own and AES in peers else CHACHA20_POLY1305


def mismatch(own: Collection[str], peers: Collection[str]) -> str | None:
    """Return why these two can't have a pipe and how to mend it, None when they can."""
    if SEAL_REQUIRED in own and SEAL not in peers:
        return (
            "the peer does not seal its pipes, and this node requires it; to mend: set "
            'conf["seal"] to "require" or "prefer" there, or to "prefer" here'
        )
    if SEAL_REQUIRED in peers and SEAL not in own:
        return (
            'the peer requires sealed pipes, and this node has conf["seal"] = "off"; to mend: '
            'set it to "require" or "prefer"'
        )
    return None


def aes_is_quicker(clock: Callable[[], float]) -> bool:
    """Measure, in a fraction of a millisecond, whether this machine has instructions for AES.

    Args:
        clock: seconds, such as ``time.perf_counter``.

    """
    key, nonce, data = bytes(32), bytes(12), bytes(_TRIAL_BYTES)

    def best(aead: AESGCM | ChaCha20Poly1305) -> float:
        times = []
        for _ in range(_TRIALS):
            began = clock()
            aead.encrypt(nonce, data, None)
            times.append(clock() - began)
        return min(times)

    return best(AESGCM(key)) < best(ChaCha20Poly1305(key))
