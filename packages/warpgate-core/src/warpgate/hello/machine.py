"""The hello as two state machines without I/O; this module gathers their names.

::

    Initiator   start → M1 · WAIT_M2 ─ M2 → Proven · PROVEN ─ nominate → M3, Nominated · NOMINATED
    Responder   start (→ M0) · WAIT_M1 ─ M1 → M2 · WAIT_M3 ─ M3 → Proven, Nominated · NOMINATED
    either      a broken rule (streams), the deadline → Failed · FAILED
"""

from __future__ import annotations

from warpgate.hello.base import (
    HELLO_TIMEOUT_S,
    MAX_KEPT_BYTES,
    MAX_KEPT_DATAGRAMS,
    MAX_NONCES,
    MAX_STREAM_LEFTOVER,
    Event,
    Failed,
    Hello,
    Nominated,
    NonceCache,
    Proven,
    Signer,
    State,
)
from warpgate.hello.initiator import ANSWER_REPEATS_S, Initiator
from warpgate.hello.keys import SealKeys
from warpgate.hello.responder import MAX_CLAIMS, MAX_M2_PER_CLAIM, MAX_M2_REPEATS, Responder

__all__ = [
    "ANSWER_REPEATS_S",
    "HELLO_TIMEOUT_S",
    "MAX_CLAIMS",
    "MAX_KEPT_BYTES",
    "MAX_KEPT_DATAGRAMS",
    "MAX_M2_PER_CLAIM",
    "MAX_M2_REPEATS",
    "MAX_NONCES",
    "MAX_STREAM_LEFTOVER",
    "Event",
    "Failed",
    "Hello",
    "Initiator",
    "Nominated",
    "NonceCache",
    "Proven",
    "Responder",
    "SealKeys",
    "Signer",
    "State",
]
