"""From what a caller names a peer by to its signed address."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from warpgate.errors import InvalidAddressError, KeyChangedError, UnknownPeerError
from warpgate.events import Counters
from warpgate.hooks import Hooks
from warpgate.hookspecs import hookimpl
from warpgate.names.rules import fingerprint
from warpgate.names.trust import Trust
from warpgate.node.resolve import resolve


class Resolver:
    def __init__(self, answer):
        self.answer, self.asked = answer, []

    @hookimpl
    async def warpgate_resolve_address(self, node, address):
        self.asked.append((node, address))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def node_with(*resolvers):
    return SimpleNamespace(hooks=Hooks(resolvers), trust=Trust(None, Counters()))


async def test_address_bytes_text_and_object(make_address):
    address = make_address(["127.0.0.1"])
    node = node_with(resolver := Resolver(None))
    assert await resolve(node, address) is address
    for form in (address.raw, bytearray(address.raw), memoryview(address.raw), address.to_text()):
        assert (await resolve(node, form)).raw == address.raw
    assert resolver.asked == []


@pytest.mark.parametrize("answer", ["object", "bytes", "text"])
async def test_a_nickname_is_for_the_resolvers(make_address, answer):
    address = make_address(["127.0.0.1"])
    forms = {"object": address, "bytes": address.raw, "text": address.to_text()}
    node = node_with(Resolver(forms[answer]), unknowing := Resolver(None))
    assert (await resolve(node, "alice")).raw == address.raw
    assert unknowing.asked == [(node, "alice")]


@pytest.mark.parametrize("resolvers", [(), (Resolver(None),), (Resolver(ValueError("broken")),)])
async def test_a_name_that_nobody_knows(resolvers):
    with pytest.raises(UnknownPeerError, match="alice"):
        await resolve(node_with(*resolvers), "alice")


async def test_a_changed_key_comes_through():
    with pytest.raises(KeyChangedError, match="pinned"):
        await resolve(node_with(Resolver(KeyChangedError("not the pinned one"))), "alice")


@pytest.mark.parametrize(
    "dest",
    [b"", b"\x00" * 40, "wg1_nonsense", "", " alice", "alice\n", "a" * 256, "tab\tname", None, 7],
    ids=repr,
)
async def test_what_is_neither_an_address_nor_a_name(dest):
    node = node_with(resolver := Resolver(None))
    with pytest.raises(InvalidAddressError):
        await resolve(node, dest)
    assert resolver.asked == []


async def test_a_resolver_may_say_who_is_meant_and_leave_where_to_others(make_address):
    class Addresses:
        @hookimpl(trylast=True)
        async def warpgate_resolve_address(self, node, address):
            return known.get(address)

    alice, eve = make_address(["10.0.0.1"]), make_address(["10.0.0.2"])
    full = f"x@{fingerprint(alice.key)}"
    known = {alice.node_id: alice, full: alice.raw}
    for answer in (alice.node_id, full):
        known["alice"] = answer
        assert (await resolve(node_with(Addresses()), "alice")).raw == alice.raw
    known |= {alice.node_id: eve, full: eve}
    for answer in (alice.node_id, full, eve.node_id):
        known["alice"] = answer
        with pytest.raises((KeyChangedError, UnknownPeerError), match=r"another|nobody"):
            await resolve(node_with(Addresses()), "alice")
    for dest in (alice.node_id, full):
        with pytest.raises(KeyChangedError):
            await resolve(node_with(Addresses()), dest)


async def test_a_pinned_name_has_its_key(make_address):
    alice, eve = make_address(["10.0.0.1"]), make_address(["10.0.0.2"])
    node = node_with(Resolver(eve))
    node.trust.pins.accept("alice", fingerprint(alice.key))
    with pytest.raises(KeyChangedError, match=fingerprint(alice.key)):
        await resolve(node, "Alice")
    assert await resolve(node, "bob") is eve
