from __future__ import annotations

import pytest

from warpgate_natlab import Lab
from warpgate_natlab.impairments import CHECKS, Finding, check, check_impairments
from warpgate_natlab.pytest_plugin import Factory

pytestmark = pytest.mark.netns
HOW_MANY = len(CHECKS) + 3  # jitter, rate and MTU are two each


def wrong(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if not finding.right]


def test_every_impairment_does_what_it_should() -> None:
    found = check_impairments()
    assert len(found) == HOW_MANY
    if wrong(found):  # a packet that a busy machine held back is no fault; twice the same is
        twice = {finding.name for finding in wrong(check_impairments())}
        found = [finding for finding in found if finding.right or finding.name in twice]
    assert wrong(found) == []


def test_every_check_sees_that_nothing_happened(
    natlab: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = natlab("port-restricted", "open")
    for name in ("set_link", "cut", "restore", "reboot_nat", "captive", "login"):
        monkeypatch.setattr(Lab, name, lambda *_, **__: None)
    monkeypatch.setattr(Lab, "change_address", lambda lab, _: lab.a.public_ip)
    found = check(lab)
    assert len(found) == HOW_MANY
    right = {finding.name for finding in found if finding.right}
    if right:  # a busy machine makes jitter of its own; twice the same is the check's fault
        right &= {finding.name for finding in check(lab) if finding.right}
    assert right == set()
