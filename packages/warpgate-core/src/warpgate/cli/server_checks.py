"""What ``warpgate doctor`` asks servers other than brokers: STUN servers, and those of strategies."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from warpgate.errors import ConfigError
from warpgate.findings import Finding

if TYPE_CHECKING:
    from warpgate.loading import LoadedStrategy, LoadReport
    from warpgate.stun.probe import Place

DIAGNOSIS_S: Final = 10.0
"""How long a strategy may look at what is its own."""
TURN: Final = "turn"


async def stun(
    servers: Sequence[str], *, enabled: bool = True, places: Sequence[Place] | None = None
) -> list[Finding]:
    """Ask each STUN server where it sees this machine.

    Args:
        servers: ``host:port``.
        enabled: ``conf["enable_stun_clients"]``.
        places: from where they are asked; None: from wherever a node would.

    """
    if not enabled:
        return [Finding("ok", "STUN servers", "switched off (enable_stun_clients is False)")]
    if not servers:
        return [
            Finding(
                "warn",
                "STUN servers",
                "none configured: a node can't know its external address, nor what its NATs do",
                "set WARPGATE_STUN=host:port,host:port or conf['stun_servers']; two are best",
            )
        ]
    return list(await asyncio.gather(*(_stun(server, places) for server in servers)))


async def _stun(server: str, places: Sequence[Place] | None) -> Finding:
    from warpgate.server_urls import join_host_port
    from warpgate.stun.survey import ask_server

    subject = f"STUN {server}"
    answer = await ask_server(server, places=places)
    if answer.mapped is None:
        mend = "check its name and port, that a STUN server runs there, and that UDP gets out"
        return Finding("fail", subject, answer.error, mend)
    seen = f"sees this machine as {join_host_port(*answer.mapped)}, {answer.rtt_s * 1000:.1f} ms"
    if answer.over == "tcp":
        text = f"answers over TCP only, and {seen}"
        mend = "let UDP out; where that can't be, list TURN servers over TLS, best on port 443"
        return Finding("warn", subject, text, mend)
    return Finding("ok", subject, seen)


async def strategies(conf: Mapping[str, Any], environ: Mapping[str, str]) -> list[Finding]:
    """Let every installed strategy look at what it relies on, such as TURN servers.

    Args:
        conf: the settings.
        environ: the environment, for the filters of plugins.

    """
    from warpgate.loading import STRICT_VARIABLE, load

    environ = {name: value for name, value in environ.items() if name != STRICT_VARIABLE}
    try:
        report = load(conf, environ)
    except ConfigError:
        return []  # the check of the plugins has said so
    found = await asyncio.gather(*(_diagnosis(each, conf) for each in report.strategies))
    return [*(each for several in found for each in several), *_without_turn(report, conf)]


def _without_turn(report: LoadReport, conf: Mapping[str, Any]) -> list[Finding]:
    if not conf["turn_servers"] or any(each.name == TURN for each in report.strategies):
        return []
    text = f"{len(conf['turn_servers'])} configured, and no strategy here uses them"
    mend = "pip install warpgate-plugin-turn; or let it pass, where plugins are filtered"
    return [Finding("fail", "TURN servers", text, mend)]


async def _diagnosis(strategy: LoadedStrategy, conf: Mapping[str, Any]) -> Sequence[Finding]:
    # In a task of its own: a strategy may swallow a cancel, and must not hold up the others.
    task = asyncio.ensure_future(_call(strategy, conf))
    try:
        await asyncio.wait([task], timeout=DIAGNOSIS_S)
    finally:
        late = not task.done()
        task.cancel()
    if late:
        text = f"its check took more than {DIAGNOSIS_S:g} s"
        return [Finding("fail", f"strategy {strategy.name}", text, f"tell {strategy.distribution}")]
    return task.result()


async def _call(strategy: LoadedStrategy, conf: Mapping[str, Any]) -> Sequence[Finding]:
    from warpgate.loading.report import one_line

    try:
        return list(await strategy.cls.diagnose(conf))
    except Exception as error:  # noqa: BLE001  # a bad plugin is a finding
        text = f"its check failed: {one_line(error)}"
        return [Finding("fail", f"strategy {strategy.name}", text, f"tell {strategy.distribution}")]
