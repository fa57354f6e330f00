"""The initiator of a hello: the side that created the plugin_id, whoever dialled."""

from __future__ import annotations

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
    pack_m1,
    unpack_m0,
    unpack_m2,
)
from warpgate.protocol.con_id import valid_plugin_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ANSWER_REPEATS_S = 30.0
MAX_HURRIES = 4
"""M1 that a punch sends at once because M0 shows that the way is open; each is larger than M0."""


class Initiator(Hello):
    """Sends M1, proves the responder by M2, and nominates with M3 when it is told to.

    ``peer`` and ``plugin_id`` are required, ``announce`` and ``allow`` don't concern it. On datagrams
    it answers a repeated M2 with M3 for 30 s after the nomination: feed it until ``next_timeout``
    is None.

    ``repeats_s``: the pauses before the first repeats of M1 on datagrams, in seconds, instead of 60,
    120, 240 … ms: a punch uses M1 as its probe, and the peer opens its NAT at an unknown moment.
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
        allow: Callable[[bytes, str], bool] = lambda _peer, _plugin_id: True,
        timeout_s: float = HELLO_TIMEOUT_S,
        repeats_s: Sequence[float] = (),
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
        if peer is None or len(peer) != KEY_SIZE or peer == identity.public_key:
            raise LocalProtocolError(
                "an initiator needs its peer's key, and one other than its own"
            )
        if plugin_id is None or not valid_plugin_id(plugin_id):
            raise LocalProtocolError("an initiator needs the attempt's plugin_id")
        if announce:
            raise LocalProtocolError("only a responder announces itself with M0")
        nonce = entropy(KEY_SIZE)
        self._exchange: KeyExchange | None = KeyExchange(entropy(KEY_SIZE))
        self._fields = HelloFields(
            plugin_id=plugin_id,
            sender=identity.public_key,
            receiver=peer,
            nonce=nonce,
            share=self._exchange.share,
            capabilities=self._capabilities,
        )
        self._m1 = pack_m1(self._fields, datagram=datagram)
        self._m2 = b""
        self._m3 = b""
        self._heard_m0 = False
        self._answers_until: float | None = None
        self._schedule.extend(repeats_s)
        self._hurries = MAX_HURRIES if repeats_s else 0

    def nominate(self, now: float) -> None:
        """Choose this pipe: queue M3. Once more, or after it failed, does nothing.

        Raises:
            LocalProtocolError: the responder is not proven yet.

        """
        if self._expired(now):
            self.handle_timeout(now)
        if self._state in (State.NOMINATED, State.FAILED):
            return
        if self._state is not State.PROVEN:
            raise LocalProtocolError("only a proven pipe can be nominated")
        self._send(M3, self._m3)
        self._finish()
        if self._datagram:
            self._answers_until = now + ANSWER_REPEATS_S

    def next_timeout(self) -> float | None:
        """Return when ``handle_timeout`` is to be called, None for never."""
        return self._answers_until if self._state is State.NOMINATED else super().next_timeout()

    def handle_timeout(self, now: float) -> None:
        """Repeat M1, fail at the deadline, or stop answering a repeated M2."""
        if self._answers_until is not None and now >= self._answers_until:
            self._answers_until = None
        super().handle_timeout(now)

    def _begin(self, now: float) -> None:
        self._state = State.WAIT_M2
        self._send(M1, self._m1)
        self._repeat_after(self._schedule.popleft() if self._schedule else FIRST_REPEAT_S, now)

    def _repeat(self) -> bool:
        self._send(M1, self._m1)
        return True

    def _on_message(self, kind: int, body: bytes, now: float) -> None:
        if kind == M2 and self._state is State.WAIT_M2:
            self._on_m2(body)
        elif kind == M2 and self._datagram and body == self._m2:
            self._on_repeated_m2(now)
        elif kind == M0 and self._state is State.WAIT_M2 and not self._heard_m0:
            self._on_m0(body)
        else:
            raise self._out_of_order(kind)

    def _on_m0(self, body: bytes) -> None:
        """The listener found this attempt by M0 already; it only must not be about another one."""
        if unpack_m0(body) != self._plugin_id:
            raise RemoteProtocolError("M0 is for another attempt")
        # A stream has one M0 at most; a datagram may come twice.
        self._heard_m0 = not self._datagram
        if self._hurries:
            self._hurries -= 1
            self._send(M1, self._m1)

    def _on_m2(self, body: bytes) -> None:
        fields, unsigned, signature = unpack_m2(body)
        mine = self._fields
        if fields.receiver != mine.sender:
            raise RemoteProtocolError("M2 is for another node")
        if fields.sender != mine.receiver:
            raise RemoteProtocolError("M2 is from another peer than the one expected")
        if fields.plugin_id != mine.plugin_id:
            raise RemoteProtocolError("M2 is for another attempt")
        m1, m2_unsigned = message(M1, self._m1), message(M2, unsigned)
        signed = signed_data(ROLE_RESPONDER, m1, m2_unsigned)
        if not signature_holds(fields.sender, signature, signed):
            raise BadSignature("the signature of M2 does not verify")
        if self._exchange is None:
            raise self._out_of_order(M2)
        secret = self._exchange.shared_secret(fields.share)
        if not self._datagram and self._deframer:
            raise self._out_of_order_bytes()
        # Only a signed nonce is remembered, so strangers can't fill the cache through an initiator.
        if not self._nonces.use(fields.nonce):
            raise StaleMessage("the nonce of M2 was used before")
        # The responder has answered in any case, so that this side learns what is wrong.
        self.mismatch = self._match(fields.capabilities)
        if self.mismatch is not None:
            self._fail(self.mismatch)
            return
        self._exchange = None
        self._m2 = body
        self._m3 = self._identity.sign(signed_data(ROLE_INITIATOR, m1, m2_unsigned))
        proven = Proven(fields.sender, fields.plugin_id, fields.capabilities, fields.version)
        self._prove(derive_seal_keys(secret, m1, message(M2, body)), proven)

    def _on_repeated_m2(self, now: float) -> None:
        """M3 was lost, or is not sent yet: the nomination is not this machine's to make."""
        if self._answers_until is not None and now < self._answers_until:
            self._send(M3, self._m3)
