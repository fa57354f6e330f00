"""The responder of a hello: the side that was told the plugin_id, or hears it from M1."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from warpgate.errors import BadSignature, LocalProtocolError, RemoteProtocolError, StaleMessage
from warpgate.hello.base import (
    FIRST_REPEAT_S,
    HELLO_TIMEOUT_S,
    Hello,
    NonceCache,
    Proven,
    Signer,
    State,
)
from warpgate.hello.keys import (
    ROLE_INITIATOR,
    ROLE_RESPONDER,
    KeyExchange,
    SealKeys,
    derive_seal_keys,
    signature_holds,
    signed_data,
)
from warpgate.hello.messages import (
    KEY_SIZE,
    M0,
    M1,
    M2,
    M3,
    HelloFields,
    message,
    pack_m0,
    pack_m2,
    unpack_m1,
    unpack_m3,
)
from warpgate.protocol.con_id import valid_plugin_id

if TYPE_CHECKING:
    from collections.abc import Callable

M2_FIRST_REPEAT_S = 0.1
# 100, 200, 400, 800, 1000 … ms: seven repeats reach the deadline.
MAX_M2_REPEATS = 7
# One answer, seven repeats and an answer to each of the eight repeats an initiator can send.
MAX_M2_PER_CLAIM = 16
# An M1 proves nothing yet: a forged datagram must not shut out the true one. With these caps at most
# 48 packets go to an address that has not proven itself (WIRE.md section 5 allows 50).
MAX_CLAIMS = 3


@dataclass(slots=True)
class _Claim:
    """An M1 that was answered: somebody says to be ``fields.sender``."""

    fields: HelloFields
    m1: bytes = field(repr=False)
    m2_body: bytes = field(repr=False)
    to_verify: bytes = field(repr=False)
    keys: SealKeys = field(repr=False)
    sent: int = 0


class Responder(Hello):
    """Answers M1 with M2, and is proven and nominated at once by M3.

    With ``announce`` it sends M0 first; that needs ``plugin_id``. On datagrams up to ``MAX_CLAIMS``
    different M1 are answered, and the one whose M3 verifies counts.
    """

    def __init__(
        self,
        *,
        identity: Signer,
        peer: bytes | None,
        plugin_id: str | None,
        datagram: bool,
        entropy: Callable[[int], bytes],
        nonces: NonceCache,
        capabilities: tuple[str, ...] = (),
        announce: bool = False,
        allow: Callable[[bytes, str], bool],
        timeout_s: float = HELLO_TIMEOUT_S,
    ) -> None:
        super().__init__(
            identity=identity,
            peer=peer,
            plugin_id=plugin_id,
            datagram=datagram,
            entropy=entropy,
            nonces=nonces,
            capabilities=capabilities,
            announce=announce,
            allow=allow,
            timeout_s=timeout_s,
        )
        if plugin_id is None and announce:
            raise LocalProtocolError("an announcement needs the attempt's plugin_id")
        if plugin_id is not None and not valid_plugin_id(plugin_id):
            raise LocalProtocolError("the attempt's plugin_id is not valid")
        # A dry run: capabilities that can't be packed are this side's fault, not the peer's.
        blank = bytes(KEY_SIZE)
        sample = HelloFields("0" * 15, blank, blank, blank, blank, self._capabilities)
        pack_m2(sample, datagram=datagram)
        self._claims: list[_Claim] = []
        self._repeats = 0

    def _begin(self, now: float) -> None:
        self._state = State.WAIT_M1
        if self._announce:
            self._send_m0()
            self._repeat_after(FIRST_REPEAT_S, now)

    def _send_m0(self) -> None:
        if self._plugin_id is not None:
            self._send(M0, pack_m0(self._plugin_id))

    def _repeat(self) -> bool:
        if self._state is State.WAIT_M1:
            self._send_m0()
            return True
        for claim in self._claims:
            self._send_m2(claim)
        self._repeats += 1
        return self._repeats < MAX_M2_REPEATS

    def _on_message(self, kind: int, body: bytes, now: float) -> None:
        again = self._datagram and self._state is State.WAIT_M3
        if kind == M1 and (self._state is State.WAIT_M1 or again):
            self._on_m1(body, now)
        elif kind == M3 and self._state is State.WAIT_M3:
            self._on_m3(body)
        else:
            raise self._out_of_order(kind)

    def _on_m1(self, body: bytes, now: float) -> None:
        m1 = message(M1, body)
        claim = next((claim for claim in self._claims if claim.m1 == m1), None)
        if claim is None:
            if len(self._claims) >= MAX_CLAIMS:
                raise RemoteProtocolError("more than one M1 claims this pipe")
            claim = self._claim(m1, unpack_m1(body))
            self._claims.append(claim)
            self.mismatch = self._match(claim.fields.capabilities)
        self._send_m2(claim)
        if self._state is State.WAIT_M1:
            self._state = State.WAIT_M3
            self._repeat_after(M2_FIRST_REPEAT_S, now)

    def _claim(self, m1: bytes, fields: HelloFields) -> _Claim:
        """Check an M1 and make its answer; the nonce is used up only when all else is right."""
        mine = self._identity.public_key
        if fields.receiver != mine:
            raise RemoteProtocolError("M1 is for another node")
        if fields.sender == mine:
            raise RemoteProtocolError("M1 comes back from this node itself")
        if self._peer is not None and fields.sender != self._peer:
            raise RemoteProtocolError("M1 is from another peer than the one expected")
        if self._plugin_id is not None and fields.plugin_id != self._plugin_id:
            raise RemoteProtocolError("M1 is for another attempt")
        if not self._allow(fields.sender, fields.plugin_id):
            raise RemoteProtocolError("the peer may not connect to this node")
        nonce = self._entropy(KEY_SIZE)
        exchange = KeyExchange(self._entropy(KEY_SIZE))
        secret = exchange.shared_secret(fields.share)
        answer = HelloFields(
            plugin_id=fields.plugin_id,
            sender=mine,
            receiver=fields.sender,
            nonce=nonce,
            share=exchange.share,
            capabilities=self._capabilities,
        )
        unsigned = pack_m2(answer, datagram=self._datagram)
        m2_unsigned = message(M2, unsigned)
        body = unsigned + self._identity.sign(signed_data(ROLE_RESPONDER, m1, m2_unsigned))
        m2 = message(M2, body)
        if self._datagram and len(m2) > len(m1):
            raise RemoteProtocolError(f"M1 has {len(m1)} bytes, and its answer would be larger")
        # An altered copy of the true M1 may have come first: its nonce is no replay of the copy's.
        shared = any(claim.fields.nonce == fields.nonce for claim in self._claims)
        if not shared and not self._nonces.use(fields.nonce):
            raise StaleMessage("the nonce of M1 was used before")
        return _Claim(
            fields=fields,
            m1=m1,
            m2_body=body,
            to_verify=signed_data(ROLE_INITIATOR, m1, m2_unsigned),
            keys=derive_seal_keys(secret, m1, m2),
        )

    def _send_m2(self, claim: _Claim) -> None:
        if claim.sent < MAX_M2_PER_CLAIM:
            claim.sent += 1
            self._send(M2, claim.m2_body)

    def _on_m3(self, body: bytes) -> None:
        signature = unpack_m3(body)
        for claim in self._claims:
            fields = claim.fields
            if signature_holds(fields.sender, signature, claim.to_verify):
                proven = Proven(
                    fields.sender, fields.plugin_id, fields.capabilities, fields.version
                )
                mismatch = self._match(fields.capabilities)
                if mismatch is not None:
                    self._fail(mismatch)
                    return
                self._prove(claim.keys, proven)
                self._claims.clear()
                self._finish()
                return
        raise BadSignature("the signature of M3 does not verify")

    def _fail(self, cause: RemoteProtocolError) -> None:
        self._claims.clear()
        super()._fail(cause)
