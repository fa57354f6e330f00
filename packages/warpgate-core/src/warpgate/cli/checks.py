"""What ``warpgate doctor`` looks at; each check returns findings and changes nothing."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import importlib_metadata

from warpgate import __version__
from warpgate.errors import ConfigError, SignallingError, WarpgateError
from warpgate.events import Counters
from warpgate.findings import Finding
from warpgate.net.constants import IP4, IP6
from warpgate.protocol.web_page import LOG_IN

if TYPE_CHECKING:
    from warpgate.identity import Identity
    from warpgate.net.nic import Interface
    from warpgate.protocol.peer_address import PeerAddress
    from warpgate.signalling.mqtt_transport import MqttTransport
    from warpgate.signalling.transport import SignalOrigin

OWNER: Final = "warpgate-core"
BROKER_TIMEOUT_S: Final = 5.0
FEW_DESCRIPTORS: Final = 1024
SLOW_BROKER_S: Final = 0.5


def package(owners: Sequence[str] | None = None) -> list[Finding]:
    """Check that ``import warpgate`` is ours alone.

    Args:
        owners: the distributions that own the import package; looked up when None.

    """
    if owners is None:
        owners = importlib_metadata.packages_distributions().get("warpgate", [])
    foreign = sorted({name for name in owners if name.lower().replace("_", "-") != OWNER})
    here = f"{OWNER} {__version__}, Python {platform.python_version()} on {platform.system()}"
    if foreign:
        return [
            Finding(
                "fail",
                "package",
                f"the import package warpgate is also installed by {', '.join(foreign)}",
                f"pip uninstall {' '.join(foreign)}; pip install --force-reinstall {OWNER}",
            )
        ]
    return [Finding("ok", "package", here)]


def interfaces(found: Sequence[Interface] | None = None) -> list[Finding]:
    """List the interfaces that a node would use.

    Args:
        found: the interfaces; looked up when None.

    """
    if found is None:
        from warpgate.net.nic import list_interfaces

        found = list_interfaces()
    findings = []
    for nic in found:
        addresses = ", ".join(address.ip for address in nic.addresses)
        marks = [
            *(["virtual"] if nic.virtual else []),
            *(["IPv4 default route"] if nic.has_default(IP4) else []),
            *(["IPv6 default route"] if nic.has_default(IP6) else []),
        ]
        tail = f" ({', '.join(marks)})" if marks else ""
        findings.append(Finding("ok", f"interface {nic.name}", addresses + tail))
    if all(nic.loopback for nic in found):
        findings.append(
            Finding(
                "warn",
                "interfaces",
                "only loopback is up: nodes on this machine can connect, others can't",
                "connect the machine to a network",
            )
        )
    elif not any(nic.has_default(af) for nic in found for af in (IP4, IP6)):
        findings.append(
            Finding(
                "warn",
                "interfaces",
                "no default route: only peers on this machine's own networks can be reached",
                "add a default route, unless a LAN is all you need",
            )
        )
    return findings


def plugins(conf: Mapping[str, Any], environ: Mapping[str, str]) -> list[Finding]:
    """Check what plugins there are and what was rejected."""
    from warpgate.loading import STRICT_VARIABLE, load

    environ = {name: value for name, value in environ.items() if name != STRICT_VARIABLE}
    try:
        report = load(conf, environ)
    except ConfigError as error:
        return [Finding("fail", "plugins", str(error), "correct the setting")]
    findings = [
        Finding("ok", f"strategy {item.name}", f"{item.phase}, {item.makes}, {item.source}")
        for item in report.strategies
        if item.phase is not None
    ]
    if not findings:
        findings.append(
            Finding(
                "fail",
                "plugins",
                "no strategy is installed, so a node can't dial",
                "pip install warpgate-plugin-direct warpgate-plugin-punch warpgate-plugin-turn",
            )
        )
    return findings + [
        Finding(
            "fail", f"plugin {failure.source}", f"{failure.stage}: {failure.cause}", failure.mend
        )
        for failure in report.rejected
    ]


def key_file(folder: Path | None) -> list[Finding]:
    """Check the key file; it is read, never made."""
    from warpgate.identity import KEY_FILE_NAME, load_or_create

    if folder is None:
        return [Finding("ok", "key", "in memory only; every start is a new node")]
    path = folder / KEY_FILE_NAME
    if not path.exists():
        parent = next(p for p in (folder, *folder.parents) if p.exists())
        if not os.access(parent, os.W_OK):
            mend = "name another install_path, or give this user the right to write there"
            return [Finding("fail", "key", f"{path} can't be made", mend)]
        return [Finding("ok", "key", f"{path} will be made at the first start")]
    mode = path.stat().st_mode & 0o777
    if os.name == "posix" and mode & 0o077:
        text = f"{path} has mode {mode:04o}: others can read this node's key"
        return [Finding("fail", "key", text, f"chmod 600 {path}")]
    try:
        identity = load_or_create(folder)
    except (WarpgateError, OSError) as error:
        return [Finding("fail", "key", str(error), "restore the file from a backup, or remove it")]
    return [Finding("ok", "key", f"{path}, node {identity.node_id}")]


def descriptors() -> list[Finding]:
    """Check how many files this process may open."""
    if sys.platform == "win32":
        return []
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FEW_DESCRIPTORS:
        text = f"only {soft} files may be open at once (hard limit {hard})"
        return [Finding("warn", "file descriptors", text, "raise the limit: ulimit -n 4096")]
    return [Finding("ok", "file descriptors", f"{soft} may be open at once")]


async def brokers(urls: Sequence[str], keep: int) -> list[Finding]:
    """Send a signal through each broker to an inbox of our own, and time it."""
    if not keep:
        return [Finding("ok", "brokers", "switched off (sig_pipe_no is 0)")]
    if not urls:
        return [
            Finding(
                "warn",
                "brokers",
                "none configured: only peers whose listening port can be reached get signals",
                "set WARPGATE_BROKERS=mqtts://host or conf['brokers']; a LAN's own: warpgate broker",
            )
        ]
    return list(await asyncio.gather(*(_broker(url) for url in urls)))


async def _broker(url: str) -> Finding:
    from warpgate.identity import Identity
    from warpgate.net.nat64 import Nat64
    from warpgate.server_urls import redact
    from warpgate.signalling.mqtt_transport import MqttTransport

    subject = f"broker {redact(url)}"
    identity = Identity.generate()
    try:
        transport = MqttTransport(identity, [url], 1, Counters(), nat64=Nat64())
    except ConfigError as error:
        return Finding("fail", subject, str(error), "correct the URL")
    returned = asyncio.Event()

    def deliver(_envelope: bytes, _origin: SignalOrigin) -> None:
        returned.set()

    await transport.start(deliver)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(BROKER_TIMEOUT_S):
            await transport.wait_connected()
            started = loop.time()
            await transport.send(*_letter_to(identity, transport.brokers()))
            await returned.wait()
        took = loop.time() - started
    except (TimeoutError, SignallingError) as error:
        status = transport.status()[0]
        cause = status.error or str(error) or "no answer"
        mend = "check that it runs, the port, user and password, TLS, and its ACL on wg/1/i/+"
        if status.answered_by == "web page":
            mend = f"this network wants a login: {LOG_IN}"
        return Finding("fail", subject, f"no signal came back: {cause}", mend)
    finally:
        await transport.close()
    return _judge(subject, transport, took)


def _letter_to(identity: Identity, names: Sequence[str]) -> tuple[PeerAddress, bytes]:
    """Return an address that stands for an inbox of our own, and a signal to it."""
    from warpgate.protocol.envelope import seal_signal
    from warpgate.protocol.peer_address import pack_address

    address = pack_address(identity, machine=bytes(16), sequence=1, brokers=names, interfaces=[])
    envelope = seal_signal(
        identity,
        identity.public_key,
        identity.exchange_key,
        wire_name="doctor",
        body=b"",
        sent_ms=int(time.time() * 1000),
        ttl_s=10,
        msg_id=os.urandom(16),
    )
    return address, envelope


def _judge(subject: str, transport: MqttTransport, took: float) -> Finding:
    status = transport.status()[0]
    tls = "TLS" if status.tls else "no TLS"
    text = f"a signal went there and back in {took * 1000:.1f} ms, MQTT {status.version}, {tls}"
    if took > SLOW_BROKER_S:
        return Finding("warn", subject, text, "every connection waits for it: use a nearer broker")
    if not status.tls and not _is_near(status.url):
        mend = "use mqtts:// so that nobody on the way sees who signals whom"
        return Finding("warn", subject, text, mend)
    return Finding("ok", subject, text)


def _is_near(url: str) -> bool:
    from warpgate.protocol.ip import is_loopback, is_private
    from warpgate.server_urls import parse_broker

    host = parse_broker(url).host
    return host == "localhost" or is_loopback(host) or is_private(host)
