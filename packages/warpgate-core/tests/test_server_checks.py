"""``warpgate doctor`` asks STUN servers itself, and lets strategies ask theirs."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import pytest

from warpgate import Plugin
from warpgate.cli import main, server_checks
from warpgate.findings import Finding
from warpgate.loading import LoadedStrategy, LoadReport
from warpgate.net.constants import IP4
from warpgate.node.config import make_config
from warpgate.stun import attributes as att
from warpgate.stun import survey
from warpgate.stun.message import BINDING, MessageClass, decode, encode
from warpgate.stun.probe import Place

HERE = [Place("lo", IP4, "127.0.0.1")]
SEEN = ("198.51.100.7", 4321)


def answer(request: bytes) -> bytes:
    transaction = decode(request).transaction_id
    return encode(BINDING, MessageClass.SUCCESS, transaction, [(att.XOR_MAPPED_ADDRESS, SEEN)])


class StunServer(asyncio.DatagramProtocol):
    """Answers over UDP, over TCP, or over both, on one port."""

    def __init__(self, udp: bool, tcp: bool) -> None:
        self.udp, self.tcp = udp, tcp
        self.asked = 0

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self.stream, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", self.port)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.transport.close()
        self.server.close()
        await self.server.wait_closed()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.asked += 1
        if self.udp:
            self.transport.sendto(answer(data), addr)  # type: ignore[attr-defined]

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read(1000)
        if self.tcp and data:
            writer.write(answer(data))
        writer.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for silent servers no longer than a test must."""
    ask = survey.ask_server
    monkeypatch.setattr(
        survey, "ask_server", lambda server, places: ask(server, places=places, timeout_s=0.3)
    )


async def test_a_stun_server_says_where_it_sees_this_machine() -> None:
    async with StunServer(udp=True, tcp=True) as server:
        [finding] = await server_checks.stun([f"127.0.0.1:{server.port}"], places=HERE)
    assert finding.level == "ok"
    assert finding.subject == f"STUN 127.0.0.1:{server.port}"
    assert "198.51.100.7:4321" in finding.text
    assert " ms" in finding.text


async def test_every_stun_server_has_its_own_line(quick: None) -> None:
    async with StunServer(True, True) as one, StunServer(False, False) as other:
        texts = [f"127.0.0.1:{port}" for port in (one.port, other.port)]
        findings = await server_checks.stun(texts * 3, places=HERE)
        assert other.asked
    assert [finding.level for finding in findings] == ["ok", "fail"] * 3


@pytest.mark.usefixtures("quick")
async def test_a_stun_server_over_tcp_alone_is_a_warning() -> None:
    async with StunServer(udp=False, tcp=True) as server:
        [finding] = await server_checks.stun([f"127.0.0.1:{server.port}"], places=HERE)
    assert finding.level == "warn"
    assert "TCP only" in finding.text
    assert "198.51.100.7:4321" in finding.text
    assert "443" in finding.mend


@pytest.mark.usefixtures("quick")
async def test_a_silent_stun_server_fails_with_the_cause_for_each_transport() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        [finding] = await server_checks.stun([place], places=HERE)
    assert finding.level == "fail"
    assert "no answer over UDP" in finding.text
    assert "over TCP" in finding.text
    assert finding.mend


async def test_a_stun_server_of_a_family_that_leads_nowhere_fails() -> None:
    [finding] = await server_checks.stun(["[2001:db8::1]:3478"], places=HERE)
    assert finding.level == "fail"
    assert "IPv6" in finding.text


async def test_the_name_of_a_stun_server_that_is_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(*_: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    [finding] = await server_checks.stun(["stun.invalid:3478"], places=HERE)
    assert (finding.level, finding.text) == ("fail", "its name was not found")


async def test_no_stun_server_is_a_warning_and_switched_off_is_not() -> None:
    assert [f.level for f in await server_checks.stun([])] == ["warn"]
    assert [f.level for f in await server_checks.stun(["127.0.0.1:9"], enabled=False)] == ["ok"]


class Quiet(Plugin):
    name: ClassVar[str] = "quiet"
    transport: ClassVar[Any] = "udp"
    phase: ClassVar[str | None] = "relay"

    async def run(self, reply: Any = None) -> None:
        """Do nothing."""


class Sound(Quiet):
    name = "sound"

    @classmethod
    async def diagnose(cls, conf: Mapping[str, Any]) -> Sequence[Finding]:
        return [Finding("ok", "a server", f"{conf['relay_after']:g}")]


class Raising(Sound):
    name = "raising"

    @classmethod
    async def diagnose(cls, conf: Mapping[str, Any]) -> Sequence[Finding]:
        raise KeyError("secret of mine")


class Wrong(Sound):
    name = "wrong"

    @classmethod
    async def diagnose(cls, conf: Mapping[str, Any]) -> Sequence[Finding]:
        return None  # type: ignore[return-value]


class Hanging(Sound):
    name = "hanging"

    @classmethod
    async def diagnose(cls, conf: Mapping[str, Any]) -> Sequence[Finding]:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


async def diagnosed(
    monkeypatch: pytest.MonkeyPatch, *classes: type[Plugin], **settings: Any
) -> list[Finding]:
    loaded = [LoadedStrategy(each.name, each, "some-plugin", "1.0", each.name) for each in classes]
    monkeypatch.setattr("warpgate.loading.load", lambda *_: LoadReport(strategies=loaded))
    conf = make_config({"install_path": ":memory:", "relay_after": 7, **settings}, {})
    return await server_checks.strategies(conf, {})


async def test_a_strategy_looks_at_what_it_relies_on(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = await diagnosed(monkeypatch, Sound, Quiet)
    assert findings == [Finding("ok", "a server", "7")]


@pytest.mark.parametrize(("cls", "words"), [(Raising, "KeyError"), (Wrong, "TypeError")])
async def test_a_strategy_that_fails_at_it_is_a_finding_and_harms_no_other(
    monkeypatch: pytest.MonkeyPatch, cls: type[Plugin], words: str
) -> None:
    bad, good = await diagnosed(monkeypatch, cls, Sound)
    assert (bad.level, good.level) == ("fail", "ok")
    assert cls.name in bad.subject
    assert words in bad.text
    assert "some-plugin" in bad.mend


async def test_a_strategy_that_takes_too_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_checks, "DIAGNOSIS_S", 0.1)
    async with asyncio.timeout(5):
        late, good = await diagnosed(monkeypatch, Hanging, Sound)
    assert (late.level, good.level) == ("fail", "ok")
    assert "more than 0.1 s" in late.text


async def test_turn_servers_without_the_strategy_fail_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers = ["turn:u:geheim@192.0.2.1", "turns:u:geheim@192.0.2.1"]
    [finding] = await diagnosed(monkeypatch, turn_servers=servers)
    assert finding.level == "fail"
    assert finding.text.startswith("2 configured")
    assert "pip install warpgate-plugin-turn" in finding.mend
    assert "geheim" not in str(finding)
    assert await diagnosed(monkeypatch) == []


def test_the_command_asks_what_it_is_told_to(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    async def stun(servers: Sequence[str], *, enabled: bool) -> list[Finding]:
        asked.append((tuple(servers), enabled))
        return [Finding("fail", "STUN", "none", "")]

    async def strategies(conf: Mapping[str, Any], _environ: object) -> list[Finding]:
        asked.append([server.host for server in conf["turn_servers"]])
        return []

    monkeypatch.setattr(server_checks, "stun", stun)
    monkeypatch.setattr(server_checks, "strategies", strategies)
    monkeypatch.setenv("WARPGATE_BROKERS", "")
    monkeypatch.setenv("WARPGATE_TURN", "turn:u:p@elsewhere.example")
    options = ["--stun", "192.0.2.1", "--turn", "turn:u:p@192.0.2.9", "--install-path", ":memory:"]
    assert main(["doctor", "--json", *options]) == 1
    assert asked == [(("192.0.2.1:3478",), True), ["192.0.2.9"]]
    assert {"level": "fail", "subject": "STUN", "text": "none", "mend": ""} in json.loads(
        capsys.readouterr().out
    )
