"""``warpgate doctor`` gets a relay of every TURN server, gives it back, and says what to mend."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from warpgate.node.config import make_config
from warpgate.server_urls import parse_turn
from warpgate.testing import LeakCheck
from warpgate.testing.coturn import USER, Coturn, free_port
from warpgate_plugin_turn import diagnosis
from warpgate_plugin_turn.allocation import Allocation
from warpgate_plugin_turn.strategy import Turn

GUARD_S = 20.0
NOWHERE = "127.0.0.1:9"
Start = Callable[..., Coturn]


async def diagnosed(*servers: str, **settings: Any) -> list[Any]:
    conf = make_config({"install_path": ":memory:", "turn_servers": servers, **settings}, {})
    async with LeakCheck(), asyncio.timeout(GUARD_S):
        return list(await Turn.diagnose(conf))


def turn(**settings: Any) -> dict[str, Any]:
    return {"plugin_conf": {"turn": settings}}


@pytest.mark.coturn
async def test_a_relay_of_every_server_each_with_its_own_line(
    coturn: Start, certificates: Any
) -> None:
    server = coturn()
    urls = [server.url(kind) for kind in ("udp", "tcp", "tls")]
    findings = await diagnosed(*urls, **turn(ca_file=str(certificates[0])))
    assert [finding.level for finding in findings] == ["ok"] * 3, findings
    assert [finding.subject for finding in findings] == [
        f"TURN 127.0.0.1:{server.port} over UDP",
        f"TURN 127.0.0.1:{server.port} over TCP",
        f"TURN 127.0.0.1:{server.tls_port} over TLS",
    ]
    assert all("a relay at 127.0.0.1:" in finding.text for finding in findings)


@pytest.mark.coturn
async def test_the_relay_is_given_back(coturn: Start) -> None:
    server = coturn("user-quota=1")  # which an allocation of ten minutes would use up
    [finding] = await diagnosed(server.url())
    assert finding.level == "ok", finding
    async with asyncio.timeout(GUARD_S):
        while (await diagnosed(server.url()))[0].level != "ok":  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.05)  # coturn counts once a second


@pytest.mark.coturn
async def test_a_server_for_ipv6_alone(coturn: Start) -> None:
    [finding] = await diagnosed(coturn(hosts=("::1",)).url())
    assert finding.level == "ok", finding
    assert "a relay at [::1]:" in finding.text


FAULTS = {
    "password": ("refused the user name or the password", "percent-encoded"),
    "expired": ("the time-limited user name ended", "clock"),
    "quota": ("quota", "user-quota"),
    "authority": ("its certificate is refused", "ca_file"),
    "name": ("localhost", "name the host as in its certificate"),
    "circle": ("sends its clients to", "name the server that it sends to"),
}


def circle(coturn: Start) -> Coturn:
    """Start two servers that send their clients to each other."""
    one, other = free_port(), free_port()
    coturn(f"alternate-server=127.0.0.1:{other}", port=one)
    return coturn(f"alternate-server=127.0.0.1:{one}", port=other)


@pytest.mark.coturn
@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_says_what_to_mend(coturn: Start, certificates: Any, fault: str) -> None:
    secret = ("use-auth-secret", "static-auth-secret=north")
    server = {
        "quota": lambda: coturn("user-quota=1"),
        "expired": lambda: coturn(accounts=secret),
        "circle": lambda: circle(coturn),
    }.get(fault, coturn)()
    url = {
        "password": lambda: server.url(login=f"{USER}:geheim"),
        "expired": lambda: server.url(login="1600000000%3Anode:geheim"),
        "authority": lambda: server.url("tls"),
        "name": lambda: server.url("tls", host="localhost"),
    }.get(fault, server.url)()
    own = {} if fault == "authority" else {"ca_file": str(certificates[0])}
    held = []
    if fault == "quota":
        parsed = parse_turn(url)
        held.append(await Allocation.open(parsed, (parsed.host, parsed.port)))
    [finding] = await diagnosed(url, **turn(**own))
    for allocation in held:
        allocation.close()
        await allocation.wait_gone()
    text, mend = FAULTS[fault]
    assert finding.level == "fail"
    assert text in finding.text
    assert mend in finding.mend
    assert "geheim" not in str(finding)


@pytest.mark.coturn
async def test_a_server_that_hangs_has_its_deadline(
    coturn: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "DEADLINE_S", 0.3)
    server = coturn()
    server.pause()
    [finding] = await diagnosed(server.url("tcp"), **turn(give_up_s=60))
    assert (finding.level, finding.text) == ("fail", "no relay within 0.3 s")
    assert finding.mend == diagnosis.WAYS["tcp"]


@pytest.mark.coturn
async def test_a_public_server_with_private_relays_fails(
    coturn: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "is_public", lambda ip: ip == "::1")
    server = coturn(hosts=("::1", "127.0.0.1"))
    [finding] = await diagnosed(server.url())
    assert finding.level == "fail"
    assert "127.0.0.1" in finding.text
    assert "external-ip" in finding.mend


@pytest.mark.coturn
def test_the_command(coturn: Start, certificates: Any) -> None:
    server = coturn()
    options = ["--turn", server.url("tls"), "--turn", server.url(login=f"{USER}:geheim")]
    stun = ["--stun", f"127.0.0.1:{server.port}", "--install-path", ":memory:"]
    result = subprocess.run(
        [sys.executable, "-m", "warpgate", "doctor", "--json", *options, *stun],
        env={**os.environ, "SSL_CERT_FILE": str(certificates[0]), "WARPGATE_BROKERS": ""},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    found = {each["subject"]: each for each in json.loads(result.stdout)}
    assert result.returncode == 1
    assert found[f"TURN 127.0.0.1:{server.tls_port} over TLS"]["level"] == "ok", found
    assert found[f"TURN 127.0.0.1:{server.port} over UDP"]["level"] == "fail", found
    assert found[f"STUN 127.0.0.1:{server.port}"]["level"] == "ok", found
    assert "geheim" not in result.stdout + result.stderr


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_a_server_that_nobody_reaches(transport: str) -> None:
    [finding] = await diagnosed(
        f"turn:u:geheim@{NOWHERE}?transport={transport}", **turn(give_up_s=0.3)
    )
    assert finding.level == "fail"
    assert finding.subject == f"TURN {NOWHERE} over {transport.upper()}"
    assert "127.0.0.1 port 9" in finding.text
    assert finding.mend == diagnosis.WAYS[transport]
    assert "geheim" not in str(finding)


async def test_without_servers_there_is_nothing_to_ask() -> None:
    assert [finding.level for finding in await diagnosed()] == ["ok"]
    [finding] = await diagnosed(f"turn:u:p@{NOWHERE}", enable_turn=False)
    assert (finding.level, "enable_turn" in finding.text) == ("ok", True)


async def test_settings_that_can_t_be_used() -> None:
    url = f"turn:u:p@{NOWHERE}"
    for own in ({"no_such_key": 1}, {"ca_file": "/no/such/file"}):
        [finding] = await diagnosed(url, **turn(**own))
        assert finding.level == "fail"
        assert next(iter(own)) in finding.text
