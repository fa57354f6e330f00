from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate import DeltaType, NATType
from warpgate.nat.behaviour import (
    Allocation,
    Filtering,
    Mapping,
    PortAllocation,
    delta_type,
    nat_type,
)
from warpgate.nat.classify import (
    Observation,
    behind_several_nats,
    classify_allocation,
    classify_filtering,
    classify_mapping,
    counting_step,
    nat64_prefix,
    port_bounds,
    synthesize,
)

EI, AD, APD = (
    Mapping.ENDPOINT_INDEPENDENT,
    Mapping.ADDRESS_DEPENDENT,
    Mapping.ADDRESS_AND_PORT_DEPENDENT,
)
LOCAL = ("192.168.1.2", 5000)
SERVERS = [("192.0.2.20", 3478), ("192.0.2.20", 3479), ("192.0.2.21", 3478), ("192.0.2.21", 3479)]
OUT = "198.51.100.10"


def seen(*ports: int, local: tuple[str, int] = LOCAL, ip: str = OUT) -> list[Observation]:
    pairs = zip(SERVERS, ports, strict=False)
    return [Observation(local, server, (ip, port)) for server, port in pairs if port]


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ((7, 7, 7, 7), EI),
        ((7, 7, 8, 8), AD),
        ((7, 8, 9, 10), APD),
        ((7, 7, 8, 9), APD),
        ((7, 0, 7, 0), EI),
        ((7, 0, 8, 0), APD),  # both servers at one port: the stricter one
        ((7, 0, 0, 0), None),
        ((7, 7, 0, 0), None),  # one address only
        ((7, 8, 0, 0), APD),
        ((0, 0, 0, 0), None),
    ],
)
def test_mapping(ports: tuple[int, ...], expected: Mapping | None) -> None:
    assert classify_mapping(seen(*ports)) is expected


def test_no_translation_is_no_mapping() -> None:
    assert classify_mapping(seen(5000, 5000, 5000, 5000, ip=LOCAL[0])) is Mapping.NONE
    assert classify_mapping(seen(5000, ip=LOCAL[0])) is Mapping.NONE
    assert classify_mapping(seen(5000, 5000, 5000, ip=OUT)) is EI


def test_the_best_seen_endpoint_decides() -> None:
    others = [seen(p, 0, p + 1, local=(LOCAL[0], p)) for p in (1, 2, 3)]
    found = [*itertools.chain(*others), *seen(7, 7, 8, 8)]
    assert classify_mapping(found) is AD


@pytest.mark.parametrize(
    ("address", "port", "expected"),
    [
        (True, True, Filtering.ENDPOINT_INDEPENDENT),
        (True, None, Filtering.ENDPOINT_INDEPENDENT),
        (False, True, Filtering.ADDRESS_DEPENDENT),
        (False, False, Filtering.ADDRESS_AND_PORT_DEPENDENT),
        (False, None, None),
        (None, True, None),
        (None, None, None),
    ],
)
def test_filtering(address: bool | None, port: bool | None, expected: Filtering | None) -> None:
    assert classify_filtering(address, port) is expected


def ports_of(ports: list[int], locals_: list[int] | None = None) -> PortAllocation | None:
    own = locals_ or [40000 + 7 * number**2 for number in range(len(ports))]
    return classify_allocation(
        Observation((LOCAL[0], local), SERVERS[0], (OUT, port), sent_s=number)
        for number, (local, port) in enumerate(zip(own, ports, strict=True))
    )


def test_preserving_allows_for_a_port_that_was_taken() -> None:
    own = [40000, 41000, 42000, 43000, 44000]
    assert ports_of(own, own).kind is Allocation.PRESERVING
    assert ports_of([*own[:4], 1111], own).kind is Allocation.PRESERVING


def test_shifted() -> None:
    own = [40000, 41007, 42001, 43900]
    found = ports_of([port - 1000 for port in own], own)
    assert (found.kind, found.step) == (Allocation.SHIFTED, -1000)


@pytest.mark.parametrize("step", [1, 2, -1, 4])
def test_sequential_with_its_step(step: int) -> None:
    found = ports_of([30000 + step * number for number in range(8)])
    assert (found.kind, found.step) == (Allocation.SEQUENTIAL, step)


def test_sequential_is_told_by_the_order_of_sending() -> None:
    found = [
        Observation((LOCAL[0], 1 + number * 31), SERVERS[0], (OUT, 20000 + number), sent_s=number)
        for number in range(8)
    ]
    random.Random(3).shuffle(found)
    assert classify_allocation(found).step == 1


def test_counting_with_gaps_and_wrap_around() -> None:
    assert counting_step([5, 6, 7, 9, 10, 11]) == 1
    assert counting_step([65533, 65534, 65535, 1024, 1025]) == 1
    assert counting_step([100, 103, 110, 112, 140, 141, 160]) == 1  # others count along
    assert counting_step([100, 900, 300, 700, 200, 500, 600]) == 0
    assert counting_step([5]) == 0


def test_a_block_is_placed_as_often_as_computed() -> None:
    rng = random.Random(5)
    right = 0
    for _ in range(2000):
        start = rng.randrange(2, 127) * 512
        ports = rng.sample(range(start, start + 512), 8)
        found = ports_of(ports)
        assert found.kind in (Allocation.BLOCK, Allocation.SEQUENTIAL)
        right += (found.low, found.high) == (start, start + 511)
    assert right / 2000 == pytest.approx(0.992, abs=0.008)


def test_random_ports_are_not_taken_for_anything_else() -> None:
    rng = random.Random(6)
    for _ in range(2000):
        found = ports_of(rng.sample(range(1024, 65536), 8))
        assert found.kind is Allocation.RANDOM
        assert (found.low, found.high) == (1024, 65535)


def test_the_range_of_random_ports() -> None:
    rng = random.Random(7)
    assert port_bounds(rng.sample(range(32768, 61000), 16)) == (32768, 60999)
    assert port_bounds(rng.sample(range(49152, 65536), 16)) == (49152, 65535)
    assert port_bounds(rng.sample(range(32768, 61000), 8)) == (1024, 65535)  # too few to say so


def test_a_block_that_is_not_aligned() -> None:
    rng = random.Random(8)
    ports = [32768 - 100, 32768 + 90, *rng.sample(range(32768 - 100, 32768 + 100), 14)]
    low, high = port_bounds(ports)
    assert low <= 32668
    assert high >= 32867
    assert high - low < 512


def test_too_few_mappings_say_nothing() -> None:
    assert classify_allocation([]) is None
    assert ports_of([50001, 50002, 50003]) is None


def test_one_mapping_seen_by_many_counts_once() -> None:
    assert classify_allocation(seen(7, 7, 7, 7)) is None


@given(
    st.lists(
        st.tuples(st.integers(1, 65535), st.integers(0, 3), st.integers(1, 65535), st.floats(0, 9))
    )
)
def test_anything_can_be_classified(rows: list[tuple[int, int, int, float]]) -> None:
    found = [
        Observation((LOCAL[0], local), SERVERS[server], (OUT, port), at)
        for local, server, port, at in rows
    ]
    classify_mapping(found)
    allocation = classify_allocation(found)
    if allocation is not None and allocation.high:
        ports = [each.mapped[1] for each in found]
        if allocation.kind is Allocation.BLOCK:
            assert allocation.low <= min(ports) <= max(ports) <= allocation.high


def test_several_nats() -> None:
    assert behind_several_nats("198.51.100.10", [OUT]) is False
    assert behind_several_nats("192.168.1.2", [OUT]) is None
    assert behind_several_nats("192.168.1.2", [OUT], OUT) is False
    assert behind_several_nats("192.168.1.2", [OUT], "100.64.3.4") is True
    assert behind_several_nats("192.168.1.2", []) is None


@pytest.mark.parametrize(
    ("hops", "expected"),
    [
        (("192.168.1.1", "100.64.1.1", "192.0.2.1"), True),
        (("192.168.1.1", None, "100.64.1.1"), True),
        (("192.168.1.1", "192.0.2.1", None), False),
        (("192.168.1.1", "10.0.0.1", "192.0.2.1"), None),
        (("192.168.1.1", None, None), None),
        (("192.0.2.1", "192.0.2.2", None), None),
        (("garbage", "more", None), None),
        ((), None),
    ],
)
def test_several_nats_by_the_first_routers(
    hops: tuple[str | None, ...], expected: bool | None
) -> None:
    assert behind_several_nats("192.168.1.2", [OUT], hops=hops) is expected
    assert behind_several_nats("100.64.5.5", [OUT], hops=hops) is None
    assert behind_several_nats(OUT, [OUT], hops=hops) is False


@pytest.mark.parametrize(
    ("prefix", "address"),
    [
        ("64:ff9b::/96", "64:ff9b::c000:aa"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:0:aa00:0"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:aa::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:0:aa00::"),
        ("2001:db8:100::/40", "2001:db8:1c0:0:aa::"),
        ("2001:db8::/32", "2001:db8:c000:aa::"),
    ],
)
def test_nat64_prefix(prefix: str, address: str) -> None:
    assert nat64_prefix([address]) == prefix
    assert synthesize(prefix, "192.0.0.170") == address


def test_rfc6052_examples() -> None:
    assert synthesize("2001:db8:122:344::/96", "192.0.2.33") == "2001:db8:122:344::c000:221"
    assert synthesize("2001:db8:122:344::/64", "192.0.2.33") == "2001:db8:122:344:c0:2:2100:0"
    assert nat64_prefix(["192.0.0.170", "::ffff:1.2.3.4", "garbage"]) is None
    with pytest.raises(ValueError, match="no NAT64 prefix"):
        synthesize("64:ff9b::/96", "::1")


NONE = Mapping.NONE
F_EI, F_AD, F_APD = Filtering


@pytest.mark.parametrize(
    ("udp", "mapping", "filtering", "expected"),
    [
        (True, NONE, F_EI, NATType.OPEN),
        (True, NONE, F_APD, NATType.SYMMETRIC_UDP_FIREWALL),
        (True, NONE, None, NATType.SYMMETRIC_UDP_FIREWALL),
        (True, EI, F_EI, NATType.FULL_CONE),
        (True, EI, F_AD, NATType.RESTRICTED),
        (True, EI, F_APD, NATType.PORT_RESTRICTED),
        (True, EI, None, NATType.PORT_RESTRICTED),
        (True, AD, F_EI, NATType.SYMMETRIC),
        (True, APD, None, NATType.SYMMETRIC),
        (False, None, None, NATType.BLOCKED),
        (None, None, None, None),
    ],
)
def test_the_seven_types(
    udp: bool | None, mapping: Mapping | None, filtering: Filtering | None, expected: NATType
) -> None:
    assert nat_type(udp, mapping, filtering) == expected


def test_the_deltas() -> None:
    kinds = {kind: delta_type(PortAllocation(kind)) for kind in Allocation}
    assert kinds == {
        Allocation.NONE: DeltaType.NOT_APPLICABLE,
        Allocation.PRESERVING: DeltaType.EQUAL,
        Allocation.SHIFTED: DeltaType.PRESERVING,
        Allocation.SEQUENTIAL: DeltaType.INDEPENDENT,
        Allocation.BLOCK: DeltaType.RANDOM,
        Allocation.RANDOM: DeltaType.RANDOM,
    }
    assert delta_type(None) is None
