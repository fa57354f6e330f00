"""``warpgate doctor``: each check says ok, warn or fail, and how to mend it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from warpgate.cli import checks, main
from warpgate.net.constants import IP4
from warpgate.net.nic import Interface, InterfaceAddress
from warpgate.testing.mosquitto import Mosquitto, find_mosquitto


def levels(findings: list[checks.Finding]) -> list[str]:
    return [finding.level for finding in findings]


def test_a_foreign_owner_of_the_package_fails_with_its_name() -> None:
    [finding] = checks.package(["warpgate-core", "warpgate"])
    assert finding.level == "fail"
    assert "warpgate" in finding.text
    assert "pip uninstall warpgate;" in finding.mend


def test_our_own_package_is_ok_however_the_name_is_spelt() -> None:
    assert levels(checks.package(["warpgate_core", "warpgate-core"])) == ["ok"]


def make_nic(name: str, ip: str, **more: object) -> Interface:
    scope = "loopback" if ip.startswith("127.") else "private"
    return Interface(name, 1, (InterfaceAddress(IP4, ip, 24, scope),), **more)  # type: ignore[arg-type]


def test_loopback_alone_is_a_warning() -> None:
    findings = checks.interfaces([make_nic("lo", "127.0.0.1", loopback=True)])
    assert levels(findings) == ["ok", "warn"]
    assert "only loopback" in findings[-1].text


def test_no_default_route_is_a_warning_and_one_is_none() -> None:
    assert levels(checks.interfaces([make_nic("eth0", "10.0.0.1")])) == ["ok", "warn"]
    routed = make_nic("eth0", "10.0.0.1", gateways={IP4: "10.0.0.254"})
    assert levels(checks.interfaces([routed])) == ["ok"]


def test_a_virtual_interface_is_marked() -> None:
    nic = make_nic("docker0", "172.17.0.1", virtual=True, gateways={IP4: None})
    assert "virtual" in checks.interfaces([nic])[0].text


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_a_key_file_that_others_can_read_fails(tmp_path: Path) -> None:
    from warpgate.identity import KEY_FILE_NAME, load_or_create

    folder = tmp_path
    identity = load_or_create(folder)
    [good] = checks.key_file(folder)
    assert good.level == "ok"
    assert identity.node_id in good.text
    path = folder / KEY_FILE_NAME
    path.chmod(0o644)
    [bad] = checks.key_file(folder)
    assert bad.level == "fail"
    assert bad.mend == f"chmod 600 {path}"
    assert path.stat().st_mode & 0o777 == 0o644, "the doctor changes nothing"


def test_a_damaged_key_file_fails_and_a_missing_one_does_not(tmp_path: Path) -> None:
    from warpgate.identity import KEY_FILE_NAME

    folder = tmp_path
    assert levels(checks.key_file(folder / "new")) == ["ok"]
    assert not (folder / "new").exists(), "the doctor makes nothing"
    path = folder / KEY_FILE_NAME
    path.write_text("rubbish")
    path.chmod(0o600)
    assert levels(checks.key_file(folder)) == ["fail"]


async def test_a_broker_that_does_not_exist_fails_with_its_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "BROKER_TIMEOUT_S", 0.5)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port
        port = sock.getsockname()[1]
        [finding] = await checks.brokers([f"mqtt://127.0.0.1:{port}"], 1)
    assert finding.level == "fail"
    assert str(port) in finding.subject
    assert finding.mend


async def test_no_broker_is_a_warning_and_switched_off_is_not() -> None:
    assert levels(await checks.brokers([], 2)) == ["warn"]
    assert levels(await checks.brokers(["mqtt://127.0.0.1"], 0)) == ["ok"]


async def test_a_password_never_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "BROKER_TIMEOUT_S", 0.5)
    [finding] = await checks.brokers(["mqtt://user:geheim@127.0.0.1:1"], 1)
    assert "geheim" not in str(finding)


def test_an_unknown_strategy_in_the_environment_fails() -> None:
    findings = checks.plugins({}, {"WARPGATE_PLUGINS": "no_such_thing"})
    assert levels(findings) == ["fail"]
    assert "no_such_thing" in findings[0].text


def test_the_command_prints_json_and_its_exit_code_tells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WARPGATE_BROKERS", "")
    code = main(["doctor", "--json", "--install-path", str(tmp_path)])
    findings = json.loads(capsys.readouterr().out)
    assert {entry["level"] for entry in findings} <= {"ok", "warn", "fail"}
    assert code == (1 if any(entry["level"] == "fail" for entry in findings) else 0)
    assert any(entry["subject"] == "key" for entry in findings)


@pytest.mark.broker
def test_a_real_broker_is_ok_with_its_latency(tmp_path: Path) -> None:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with Mosquitto(tmp_path) as broker:
        command = [sys.executable, "-m", "warpgate", "doctor", "--json", "--broker", broker.url]
        result = subprocess.run(
            [*command, "--install-path", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    [finding] = [e for e in json.loads(result.stdout) if e["subject"].startswith("broker")]
    assert finding["level"] == "ok", finding
    assert "there and back" in finding["text"]
