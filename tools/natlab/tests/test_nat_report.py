"""``warpgate nat`` in the laboratory: what it says against what each profile is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from warpgate_natlab import Lab
from warpgate_natlab.kernel_nat import BLOCK
from warpgate_natlab.profiles import PROFILES, Expectation, Profile, profile

pytestmark = [pytest.mark.netns, pytest.mark.timeout(90)]

TYPES = {
    "open": "open", "open-firewall": "symmetric_udp_firewall", "fullcone": "full_cone",
    "addr-restricted": "restricted", "port-restricted": "port_restricted",
    "symmetric-random": "symmetric", "symmetric-sequential": "symmetric",
    "symmetric-block": "symmetric", "cgnat": "port_restricted", "cgnat-symmetric": "symmetric",
    "udp-blocked": "blocked", "https-only": "blocked", "rst-on-stray": "port_restricted",
    "linux": "port_restricted", "linux-random": "symmetric", "linux-block": "symmetric",
    "linux-upnp": "port_restricted", "v6-firewalled": "symmetric_udp_firewall",
}  # fmt: skip
DELTAS = {"none": "not_applicable", "preserving": "equal", "sequential": "independent",
          "block": "random", "random": "random"}  # fmt: skip


def report(lab: Lab, *arguments: str, nat64: bool = False) -> dict[str, Any]:
    """Run the command on host a."""
    families = {4, *lab.a.families} if nat64 else set(lab.a.families)
    servers = [server for family in sorted(families) for server in lab.servers.stun((family,))]
    process = lab.a.popen(
        [sys.executable, "-m", "warpgate", "nat", "--json", *arguments],
        env={"WARPGATE_STUN": ",".join(servers), "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    out, err = process.communicate(timeout=30)
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    return found


def path(found: dict[str, Any], version: int) -> dict[str, Any]:
    family, nat64 = ("IPv4", False) if version == 4 else ("IPv6", version == 64)
    (match,) = [p for p in found["paths"] if p["af"] == family and p["nat64"] is nat64]
    return dict(match)


def several_nats(chosen: Profile, version: int) -> bool | None:
    """Return whether two NATs must be seen; None where the first routers say nothing."""
    expected = chosen.expect[version]
    if expected.mapping == "blocked" or version == 64:
        return None
    if len(chosen.families) > 1 and version == 4:
        return None  # the router that divides the families is silent, and could be another NAT
    return chosen.carrier is not None


def differences(found: dict[str, Any], expected: Expectation, public: str) -> list[str]:
    """Compare one path with a profile's truth."""
    blocked = expected.mapping == "blocked"
    filtering = {"none": "endpoint-independent", "blocked": None}
    truth: dict[str, Any] = {
        "udp": not blocked,
        "mapping": None if blocked else expected.mapping,
        "filtering": filtering.get(expected.filtering, expected.filtering),
        "hairpin": {"yes": True, "no": None if blocked else False}.get(expected.hairpin),
        "firewall": None if expected.mapping != "none" else expected.filtering != "none",
        "tcp": expected.tcp == "all",
        "tcp_mapping": expected.tcp_mapping if expected.tcp == "all" else None,
        "external": [public] if expected.tcp == "all" else [],
    }
    got = {name: found[name] for name in truth}
    ports = found["allocation"] and found["allocation"]["kind"]
    got["allocation"], truth["allocation"] = ports, None if blocked else expected.allocation
    return [f"{name}: {got[name]!r}, not {truth[name]!r}" for name in truth
            if got[name] != truth[name]]  # fmt: skip


def check(lab: Lab, chosen: Profile) -> list[str]:
    found = report(lab, nat64=chosen.nat64)
    print(chosen.name, found["seconds"])
    wrong = []
    for version, expected in chosen.expect.items():
        public = lab.a.nics[0].public[version]
        wrong += differences(path(found, version), expected, public)
        several = path(found, version)["several_nats"]
        if several is not several_nats(chosen, version):
            wrong.append(f"several NATs: {several}")
    if len(found["paths"]) != len(chosen.expect):
        wrong.append(f"{len(found['paths'])} paths")
    if chosen.nat64 is not bool(found["nat64"]):
        wrong.append(f"NAT64: {found['nat64_prefix']}")
    return wrong


@pytest.mark.parametrize("name", PROFILES)
def test_the_report_is_right(name: str, natlab: Any) -> None:
    chosen = profile(name)
    lab = natlab(a=name, servers=["stun"], seed=11)
    # A packet that a busy machine held back is no fault of the report; twice the same is.
    wrong = check(lab, chosen) and check(lab, chosen)
    assert wrong == []
    if name in TYPES:
        (found,) = report(lab)["paths"]
        assert found["nat_type"] == TYPES[name]
        allocation = found["allocation"] or found["tcp_allocation"]
        assert found["delta_type"] == (DELTAS[allocation["kind"]] if allocation else None)


@pytest.mark.parametrize("step", [1, 2, -1])
def test_the_step_of_a_nat_that_counts(step: int, natlab: Any) -> None:
    lab = natlab(a="symmetric-sequential", servers=["stun"], seed=5)
    lab.set_nat("a", allocation={"mode": "sequential", "step": step})
    (found,) = report(lab)["paths"]
    assert (found["allocation"]["kind"], found["allocation"]["step"]) == ("sequential", step)
    assert (found["tcp_allocation"]["kind"], found["tcp_allocation"]["step"]) == (
        "sequential",
        step,
    )


@pytest.mark.parametrize("size", [128, 512, 2048])
def test_the_bounds_of_a_block(size: int, natlab: Any) -> None:
    lab = natlab(a=f"symmetric-block-{size}", servers=["stun"], seed=6)
    (found,) = report(lab)["paths"]
    allocation = found["allocation"]
    assert allocation["kind"] == "block"
    assert allocation["high"] - allocation["low"] == size - 1
    assert allocation["low"] % size == 0
    ports = {each["outside"][1] for each in lab.mappings("a")}
    assert all(allocation["low"] <= port <= allocation["high"] for port in ports)


def test_the_bounds_of_the_kernels_block(natlab: Any) -> None:
    lab = natlab(a="linux-block", servers=["stun"])
    (found,) = report(lab)["paths"]
    assert (found["allocation"]["low"], found["allocation"]["high"]) == BLOCK


def test_nat64_prefix(natlab: Any) -> None:
    found = report(natlab(a="v6-only-nat64", servers=["stun"]), nat64=True)
    assert found["nat64_prefix"] == "64:ff9b::/96"


def test_each_interface_has_its_own_facts() -> None:
    with Lab(pair="two-nics", servers=["stun"]) as lab:
        found = {each["interface"]: each for each in report(lab)["paths"]}
        truth = {nic.name: nic for nic in lab.a.nics}
        assert {name: each["mapping"] for name, each in found.items()} == {
            name: nic.profile.expect[4].mapping for name, nic in truth.items()
        }
        assert {name: each["external"] for name, each in found.items()} == {
            name: [nic.public[4]] for name, nic in truth.items()
        }


def test_a_lossy_line_and_a_dead_server_change_nothing(natlab: Any) -> None:
    lab = natlab(a="addr-restricted", servers=["stun"], seed=2, loss=0.1)
    found = report(lab, "--stun", "192.0.2.99:3478", "--stun", *lab.servers.stun())
    (one,) = found["paths"]
    assert one["mapping"] == "endpoint-independent"
    assert one["filtering"] == "address-dependent"
    assert one["allocation"]["kind"] == "preserving"
    assert [server["answered"] for server in found["servers"]] == [False, True, True]
