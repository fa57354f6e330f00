"""Port mapping against a real miniupnpd on a kernel NAT, and who gets in by it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("warpgate_natlab", reason="needs the NAT laboratory")

from warpgate import TCP, UDP
from warpgate.protocol.peer_address import Endpoint, parse_address
from warpgate_natlab import kernel_nat
from warpgate_natlab.lab import Lab
from warpgate_natlab.namespaces import command, why_not
from warpgate_natlab.session import Peer
from warpgate_plugin_direct.port_mapping import nat_pmp

pytestmark = [pytest.mark.netns]

HAS_UPNP = importlib.util.find_spec("async_upnp_client") is not None
PUBLIC = "44.128.1.10"
WAIT_S = 12.0
needs_upnp = pytest.mark.skipif(not HAS_UPNP, reason="needs async-upnp-client")
ALONE = ["pcp", "nat-pmp", pytest.param("upnp", marks=needs_upnp)]
ALL = ["pcp", "nat-pmp", "upnp"]


class Router:
    """The miniupnpd of host a's router."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.space = lab.router("a")
        self.config = lab.run.folder / "miniupnpd-a-nat.conf"
        self.pid = lab.run.folder / "miniupnpd-a-nat.pid"
        self.leases = lab.run.folder / "a-nat.leases"
        self._own: list[subprocess.Popen[Any]] = []

    def mapped(self) -> set[tuple[str, str]]:
        """Return (transport, target) of every port that the kernel forwards."""
        kinds = {"0x6": "tcp", "0x11": "udp"}
        found = set()
        for line in kernel_nat.ruleset(self.space).splitlines():
            if "dnat" in line:
                kind = next(word for key, word in kinds.items() if f" {key} " in line)
                found.add((kind, line.split("to ")[-1].strip()))
        return found

    def ends(self) -> dict[str, int]:
        """Return when each mapping ends, by (transport, ports): miniupnpd writes them down."""
        rows = [line.split(":") for line in self.leases.read_text("ascii").splitlines()]
        return {":".join(row[:4]): int(row[4]) for row in rows if len(row) > 4}

    def stop(self, *, forget: bool) -> None:
        """Kill it; ``forget``: with all that it did, as a reboot does."""
        os.kill(int(self.pid.read_text()), signal.SIGKILL)
        self.pid.unlink()  # else a new one takes the zombie for a rival
        if forget:
            self.leases.unlink(missing_ok=True)
            nft = command("nft") or "nft"
            for chain in ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"):
                self.space.run([nft, "flush", "chain", "inet", "filter", chain])

    def start(self, **changes: str) -> None:
        """Start it again, with other settings."""
        text = self.config.read_text("ascii")
        for name, value in changes.items():
            lines = [line for line in text.splitlines() if not line.startswith(f"{name}=")]
            text = "\n".join([*lines, f"{name}={value}", ""])
        changed = self.config.with_suffix(".changed")
        changed.write_text(text, "ascii")
        argv = [command("miniupnpd") or "", "-d", "-f", str(changed), "-P", str(self.pid)]
        log = (self.lab.run.folder / "miniupnpd-again.log").open("ab")
        with log:
            self._own.append(self.space.popen(argv, stdout=log, stderr=log))
        until(lambda: self.pid.exists() and self.pid.read_text().strip() == self._process())

    def _process(self) -> str:
        # `ip netns exec` becomes the command: the process is the one that was started.
        return str(self._own[-1].pid)

    def close(self) -> None:
        for process in self._own:
            if process.poll() is None:
                process.kill()
            process.wait()


def until(condition: Callable[[], bool], wait_s: float = WAIT_S) -> None:
    """Wait for something in other processes to be so."""
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if why_not():
        pytest.skip(why_not())
    with Lab("linux-upnp", "open") as built:
        yield built


@pytest.fixture(scope="module")
def only_router(lab: Lab) -> Iterator[Router]:
    found = Router(lab)
    yield found
    found.close()


@pytest.fixture
def router(only_router: Router) -> Router:
    assert only_router.mapped() == set()
    return only_router


def peer(lab: Lab, which: str = "a", **settings: Any) -> Peer:
    conf: dict[str, Any] = {"enable_upnp": which == "a", "install_path": ":memory:"}
    return Peer(lab, which, {**conf, "plugin_conf": {"port_mapping": settings}})


def endpoint(node: Peer) -> Endpoint:
    """Return what the node's address says of its one interface."""
    ((found,),) = [r.endpoints for r in parse_address(address(node)).interfaces]
    return found


def address(node: Peer) -> str:
    return str(node.ask({"do": "address"})["address"])


def mapped(node: Peer) -> Endpoint:
    """Wait for the mapped address."""
    node.answer(WAIT_S)
    until(lambda: endpoint(node).ext_port is not None)
    return endpoint(node)


def both(found: Endpoint) -> set[tuple[str, str]]:
    return {(kind, f"192.168.1.2:{found.port}") for kind in ("tcp", "udp")}


@pytest.mark.parametrize(
    "protocols",
    [["pcp"], ["nat-pmp"], pytest.param(["upnp"], marks=needs_upnp), ALL],
    ids="+".join,
)
def test_an_outside_host_gets_in(lab: Lab, router: Router, protocols: list[str]) -> None:
    with peer(lab, "b") as outside:
        outside.answer(WAIT_S)
        with peer(lab, protocols=protocols) as inside:
            found = mapped(inside)
            assert (found.ext_ip, found.ext_port) == (PUBLIC, found.port)
            assert found.nat == 3  # full cone
            until(lambda: router.mapped() == both(found))
            options = {"plugins": ["direct_connect"]}
            result = outside.ask(
                {"do": "connect", "address": address(inside), "timeout": 8, "options": options}, 15
            )
            assert result["ok"], result
            (won,) = [a for a in result["report"]["attempts"] if a["status"] == "won"]
            assert (won["route_type"], won["remote"]) == (2, f"{PUBLIC} port {found.port}")
            began = time.monotonic()
        assert time.monotonic() - began < 4
        assert router.mapped() == set()  # at once: the node has removed them


@pytest.mark.parametrize("protocol", ALONE)
def test_it_is_made_again_after_a_reboot(lab: Lab, router: Router, protocol: str) -> None:
    with peer(lab, protocols=[protocol], check_s=1) as inside:
        found = mapped(inside)
        until(lambda: router.mapped() == both(found))
        router.stop(forget=True)
        assert router.mapped() == set()
        time.sleep(2.5)  # routers are not back at once, and epochs count whole seconds
        # Its epoch is the machine's uptime otherwise, and this machine goes on.
        router.start(system_uptime="no")
        until(lambda: router.mapped() == both(found))
        assert endpoint(inside) == found
    assert router.mapped() == set()


def test_a_restart_is_announced(lab: Lab, router: Router) -> None:
    with peer(lab, protocols=["pcp"], check_s=3600) as inside:
        found = mapped(inside)
        until(lambda: router.mapped() == both(found))
        router.stop(forget=True)
        router.start()
        until(lambda: router.mapped() == both(found))


@pytest.mark.parametrize("protocol", ALONE)
def test_it_is_renewed_at_half_life(lab: Lab, router: Router, protocol: str) -> None:
    router.stop(forget=True)
    router.start(min_lifetime="10")
    with peer(lab, protocols=[protocol], lease_s=10, check_s=3600) as inside:
        found = mapped(inside)
        until(lambda: router.mapped() == both(found))
        until(lambda: len(router.ends()) == 2)
        first = router.ends()

        def renewed() -> bool:
            # miniupnpd writes a line anew, or takes it out and puts it in: both may be missing a moment.
            now = router.ends()
            return now.keys() == first.keys() and all(now[key] >= first[key] + 4 for key in now)

        until(renewed)
        until(lambda: router.mapped() == both(found))
        assert endpoint(inside) == found
    router.stop(forget=True)
    router.start()


def test_nothing_is_mapped_without_enable_upnp(lab: Lab, router: Router) -> None:
    with Peer(lab, "a", {"enable_upnp": False, "install_path": ":memory:"}) as inside:
        inside.answer(WAIT_S)
        time.sleep(1)
        assert endpoint(inside).ext_port is None
        assert router.mapped() == set()


@pytest.mark.parametrize("protocol", ALONE)
def test_a_port_that_another_host_has(lab: Lab, router: Router, protocol: str) -> None:
    with peer(lab, protocols=[protocol]) as inside:
        port = mapped(inside).port
    other = "192.168.1.3"
    lab.a.configure(f"addr add {other}/24 dev eth0")
    with lab.a.socket(ip=other) as rival:
        rival.settimeout(WAIT_S)

        def ask(lease_s: int) -> None:
            for transport in (TCP, UDP):
                wish = port if lease_s else 0
                request = nat_pmp.pack_map(transport, port, wish, lease_s)
                rival.sendto(request, ("192.168.1.1", 5351))
                assert nat_pmp.parse_map(rival.recv(100), transport, port) is not None

        ask(600)
        try:
            with peer(lab, "b") as outside, peer(lab, protocols=[protocol]) as inside:
                outside.answer(WAIT_S)
                found = mapped(inside)
                assert found.port == port
                assert found.ext_port != port
                until(lambda: both(found) < router.mapped())
                options = {"plugins": ["direct_connect"]}
                request = {"do": "connect", "address": address(inside), "options": options}
                result = outside.ask({**request, "timeout": 8}, 15)
                assert result["ok"], result
        finally:
            ask(0)
            lab.a.configure(f"addr del {other}/24 dev eth0")
