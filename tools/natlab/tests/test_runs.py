"""Nothing is left, whoever dies: looked for by names, processes, devices and files."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from warpgate_natlab import Lab, LabError, runs

pytestmark = pytest.mark.netns

PATIENCE_S = 15.0
# A laboratory with everything that could stay behind: kernel NAT, TUN devices, servers, a process
# in a host that ignores polite signals.
HOLDER = """
import sys, time
from warpgate_natlab import Lab
with Lab("linux-upnp", "cgnat", servers="mqtt,stun") as lab:
    stubborn = lab.a.popen(["sh", "-c", "trap '' TERM INT HUP; sleep 1000 & sleep 1000"])
    print(lab.run.id, lab.run.guardian.pid, lab.engine.process.pid, flush=True)
    time.sleep(1000)
"""


def heed_sigint() -> None:
    """Undo, in a child, what a shell does to its background jobs: they ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Held:
    def __init__(self) -> None:
        argv = [sys.executable, "-c", HOLDER]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, preexec_fn=heed_sigint)
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        self.run = words[0].decode()
        self.guardian, self.engine = int(words[1]), int(words[2])


@pytest.fixture
def held() -> Iterator[Held]:
    lab = Held()
    try:
        assert len(runs.namespaces(lab.run)) == 4
        # The engine, two mosquitto, coturn, miniupnpd, sh and its sleep.
        eventually(lambda: len(runs.processes(lab.run)) >= 7)
        yield lab
    finally:
        lab.process.kill()
        lab.process.wait()
        assert lab.process.stdout is not None
        lab.process.stdout.close()
    assert not left(lab.run)


def left(run: str) -> list[object]:
    """Everything of a run that is still there."""
    found: list[object] = [*runs.namespaces(run), *runs.processes(run)]
    found += [path for path in (runs.FOLDER / run,) if path.exists()]
    return found + list(runs.ETC_NETNS.glob(f"{runs.PREFIX}{run}-*"))


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def root_network() -> tuple[str, str]:
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    names = " ".join(sorted(line.split(": ")[1] for line in links.splitlines()))
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=False)
    return names, rules.stdout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_the_laboratory_dies(held: Held, number: signal.Signals) -> None:
    before = root_network()
    held.process.send_signal(number)
    held.process.wait(PATIENCE_S)
    eventually(lambda: not left(held.run))
    assert root_network() == before  # TUN devices, veth pairs and rules were in the namespaces


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "command", [["selftest", "cgnat", "linux"], ["matrix", "--profiles", "open"]]
)
def test_a_command_with_several_laboratories_ends_at_once(
    command: list[str], number: signal.Signals
) -> None:
    argv = [sys.executable, "-m", "warpgate_natlab", *command]
    process = subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=heed_sigint
    )

    def mine() -> list[str]:
        found = []
        for path in runs.FOLDER.glob("*/owner"):
            with contextlib.suppress(FileNotFoundError):  # another process's run has just ended
                if path.read_text("ascii") == str(process.pid):
                    found.append(path.parent.name)
        return found

    try:
        eventually(lambda: any(runs.processes(run) for run in mine()))
        process.send_signal(number)
        assert process.wait(5) == 128 + number  # a probe goes on for eight seconds
        assert mine() == []  # and not only after the guardian's work
    finally:
        process.kill()
        process.wait()


def test_the_next_laboratory_removes_what_nobody_guarded(held: Held) -> None:
    os.kill(held.guardian, signal.SIGKILL)
    held.process.kill()
    held.process.wait()
    assert left(held.run)
    with Lab():
        assert not left(held.run)


def test_cleanup_removes_dead_runs_and_spares_living_ones(held: Held) -> None:
    os.kill(held.guardian, signal.SIGKILL)
    command = [sys.executable, "-m", "warpgate_natlab", "cleanup"]
    living = subprocess.run(command, capture_output=True, text=True, check=True)
    assert held.run not in living.stdout
    assert len(runs.namespaces(held.run)) == 4
    held.process.kill()
    held.process.wait()
    dead = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "dead runs removed" in dead.stdout  # by this one, or by another test's laboratory
    assert not left(held.run)


def test_a_running_laboratory_can_be_closed_by_hand(held: Held) -> None:
    runs.destroy(held.run, spare=(held.process.pid, held.guardian))
    assert not left(held.run)


def test_the_guardian_does_not_leave_with_a_polite_signal(held: Held) -> None:
    os.kill(held.guardian, signal.SIGTERM)
    os.kill(held.guardian, signal.SIGINT)
    held.process.kill()
    held.process.wait()
    eventually(lambda: not left(held.run))


def test_closing_works_without_the_guardian() -> None:
    with Lab() as lab:
        lab.run.guardian.kill()
        lab.run.guardian.wait()
    assert not left(lab.run.id)


def test_the_engines_death_is_told_and_all_is_taken_down() -> None:
    with Lab("port-restricted", "cgnat") as lab:
        lab.engine.process.kill()
        lab.engine.process.wait()
        with pytest.raises(LabError, match="the engine"):
            lab.stats()
    assert not left(lab.run.id)


def test_a_laboratory_that_can_not_be_built_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    class Noted(runs.Run):
        def __init__(self) -> None:
            super().__init__()
            made.append(self.id)

    monkeypatch.setattr("warpgate_natlab.lab.Run", Noted)
    with pytest.raises(LabError):
        Lab("port-restricted", "open", delay_ms=-1)
    assert len(made) == 1
    assert not left(made[0])


def test_a_forked_child_does_not_take_its_parents_laboratory_down() -> None:
    with Lab() as lab:
        # A fork has the object, but is not the process that it belongs to.
        owner, lab.run.owner = lab.run.owner, 1
        lab.run.close()
        assert len(runs.namespaces(lab.run.id)) == 3
        lab.run.owner = owner
    assert not left(lab.run.id)


def test_parallel_laboratories_do_not_meet() -> None:
    with Lab("open", "open") as one, Lab("open", "open") as two:
        assert one.run.id != two.run.id
        listener = two.b.socket(ip=two.b.ip, port=7000)
        mine = one.b.socket(ip=one.b.ip, port=7000)
        with listener, mine, one.a.socket(ip=one.a.ip) as sender:
            assert (one.a.ip, one.b.ip) == (two.a.ip, two.b.ip)
            sender.sendto(b"only here", (one.b.ip, 7000))
            mine.settimeout(2)
            listener.settimeout(0.2)
            assert mine.recv(100) == b"only here"
            with pytest.raises(TimeoutError):
                listener.recv(100)
        one.close()
        assert not left(one.run.id)
        assert two.stats("servers")["ab"]["packets"] >= 0


@pytest.mark.parametrize("names", [("linux", "dual-stack"), ("v6-only-nat64", "open")])
def test_no_route_leads_outside(names: tuple[str, str]) -> None:
    with Lab(*names) as lab:
        taps = {
            device["netns"]: device["name"] for device in lab.topology.engine["devices"].values()
        }
        for space in runs.namespaces(lab.run.id):
            links = subprocess.run(
                ["ip", "-n", space, "-o", "link"], capture_output=True, text=True, check=True
            ).stdout
            for line in links.splitlines():
                name = line.split(": ")[1].partition("@")
                # Every interface is the loopback, one of the engine's TUN devices, a bridge, or a
                # veth whose other end is in a namespace of this run.
                if name[0] in ("lo", "lan0", taps.get(space)):
                    continue
                assert "link-netns" in line
                assert f"link-netns {lab.run.namespace('')[:-1]}" in line
        for host in (lab.a, lab.b, lab.net):
            for ip, family in (("9.9.9.9", 4), ("2620:fe::9", 6)):
                done = host.run(["ip", f"-{family}", "route", "get", ip], check=False)
                if done.returncode == 0:  # the default route, which ends in the engine
                    assert "dev eth0" in done.stdout
        before = lab.stats("inet")["packets"]
        with lab.a.socket(ip=lab.a.ip) as sock:
            sock.setblocking(False)
            target = ("9.9.9.9", 53) if ":" not in lab.a.ip else ("2620:fe::9", 53)
            sock.sendto(b"into the void", target)
        eventually(
            lambda: lab.stats("inet")["drops"] != {} or lab.stats("inet")["packets"] > before
        )
        assert "9.9.9.9" not in lab.stats("inet")["dst"]
        assert "2620:fe::9" not in lab.stats("inet")["dst"]
