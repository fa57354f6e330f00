"""The report: one line per attempt and skip, and as plain values."""

from __future__ import annotations

import json

from warpgate.errors import NoPathError
from warpgate.net.constants import IP4, IP6, LOOPBACK_BIND, NIC_BIND
from warpgate.traversal.report import AttemptOutcome, Report, Skip, SkipReason


def outcome(**changes):
    values = {
        "strategy": "direct_connect",
        "phase": "direct",
        "af": IP4,
        "route_type": NIC_BIND,
        "local": "eth0",
        "remote": "192.168.1.7 port 4000",
        "plugin_id": "A" * 15,
        "seconds": 0.0123,
        "status": "failed",
        "cause": "ConnectionRefusedError: nobody listens",
    }
    return AttemptOutcome(**{**values, **changes})


def test_a_line_has_strategy_family_route_phase_time_and_cause():
    line = str(outcome())
    for part in ("direct_connect", "IPv4", "NIC_BIND", "eth0", "192.168.1.7 port 4000"):
        assert part in line
    assert "(direct, 12.3 ms): failed, ConnectionRefusedError: nobody listens" in line


def test_an_auxiliarys_line_says_so_and_a_winners_has_no_cause():
    assert str(outcome(phase=None, status="won", cause="")).endswith("(auxiliary, 12.3 ms): won")
    won = outcome(status="won", cause="", pipe="datagrams (udp), relay")
    assert str(won).endswith(": won, datagrams (udp), relay")


def test_a_skip_says_what_and_why():
    skip = Skip("turn", SkipReason.RELAY_NEVER)
    assert str(skip) == 'turn: skipped, relays are switched off (conf["relay"] = "never")'
    skip = Skip("direct_connect", SkipReason.OTHER_MACHINE, IP6, LOOPBACK_BIND, "::1")
    assert str(skip).startswith("direct_connect IPv6 LOOPBACK_BIND: skipped, ")
    assert str(skip).endswith(" (::1)")


def test_every_reason_has_a_text_of_its_own():
    assert len({reason.value for reason in SkipReason}) == len(SkipReason)


def test_a_report_has_a_head_and_a_line_for_each_attempt_and_skip():
    report = Report(outcomes=[outcome()], skips=[Skip("turn", SkipReason.RELAY_NEVER)], seconds=1.5)
    assert len(report.lines()) == 2
    assert str(report).splitlines()[0] == "no path after 1.50 s"
    report.error = NoPathError("so it is")
    assert str(report).splitlines()[0] == "no path after 1.50 s: so it is"
    report.winner = outcome(status="won", cause="")
    assert str(report).splitlines()[0] == "connected by direct_connect in 1500.0 ms"
    assert str(report).splitlines()[1:] == ["  " + line for line in report.lines()]


def test_as_data_it_is_plain_enough_for_json():
    report = Report("peer", [outcome()], [Skip("turn", SkipReason.RELAY_NEVER)], 1.5)
    data = json.loads(json.dumps(report.as_dict()))
    assert data["peer_id"] == "peer"
    assert data["winner"] is None
    assert data["error"] is None
    assert data["attempts"][0]["cause"] == "ConnectionRefusedError: nobody listens"
    assert data["skips"][0]["reason"] == "RELAY_NEVER"
    report.winner, report.error = report.outcomes[0], NoPathError("none")
    data = report.as_dict()
    assert (data["winner"], data["error"]) == ("direct_connect", "none")


def test_no_line_stands_twice_in_a_failures_text():
    report = Report(outcomes=[outcome()], skips=[Skip("turn", SkipReason.RELAY_NEVER)], seconds=1.5)
    lines = report.lines()
    report.error = NoPathError("no path to the peer:\n" + "\n".join(lines))
    text = str(report).splitlines()
    assert text == ["no path after 1.50 s: no path to the peer", *("  " + line for line in lines)]
