"""The faults of TURN servers, as the report of a call tells them; with real servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from warpgate import auto_connect
from warpgate.testing.coturn import USER, Coturn
from warpgate_plugin_turn.credentials import time_limited
from warpgate_plugin_turn.pool import Pool
from warpgate_plugin_turn.servers import ServerList

pytestmark = pytest.mark.coturn

GUARD_S = 20.0
LIMIT_S = 8.0
"""All servers' deadlines together; a call that waits for its own time-out is over it."""
FIRST_S = 60
"""A head start that nobody waits for: so that on a busy machine, too, the first server is the first."""
Start = Callable[..., Coturn]
Pair = Callable[..., Any]


@dataclass
class Fault:
    """A server that has it.

    Attributes:
        url: of the server.
        words: what the report says of it, the error's class first.
        arrange: brings it about, given the node that uses the server.
        settings: further ones of the nodes.

    """

    url: str
    words: tuple[str, ...]
    arrange: Callable[[Any], Awaitable[None]] | None = None


def pool_of(node: Any) -> Pool:
    pool: Pool = node.traversal.plugin_loaders["turn"].factory.pool
    return pool


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(GUARD_S):
        while not condition():  # noqa: ASYNC110  # the server tells nobody
            await asyncio.sleep(0.005)


@pytest.fixture
def fault(coturn: Start) -> Iterator[Callable[[str], Fault]]:
    """Return a function that starts a server with a fault, by its name."""
    stack = ExitStack()

    def expired() -> Fault:
        server = coturn(accounts=("use-auth-secret", "static-auth-secret=north"))
        user, password = time_limited("north", 1_600_000_000)
        login = f"{user.replace(':', '%3A')}:{password.replace('/', '%2F')}"
        return Fault(server.url(login=login), ("CredentialsExpired: ", "user name ended"))

    def quota() -> Fault:
        server = coturn("user-quota=1")

        async def arrange(node: Any) -> None:
            states = [s for s in pool_of(node).servers.states if s.server.port == server.port]
            pool = Pool(ServerList([states[0].server]), node.stats)
            await pool.allocate()
            node.resources.register(pool)

        return Fault(server.url(), ("QuotaReached: ", "quota of allocations"), arrange)

    def password() -> Fault:
        words = ("WrongCredentials: ", "refused the user name or the password")
        return Fault(coturn().url(login=f"{USER}:wrong"), words)

    def tls_name() -> Fault:
        words = ("CertificateRefused: ", "its certificate is refused", "localhost", "login page")
        return Fault(coturn().url("tls", host="localhost"), words)

    def restarted() -> Fault:
        server = coturn()

        async def arrange(node: Any) -> None:
            pool_of(node).prepare()
            await until(pool_of(node).is_warm)
            server.kill()
            server.start()

        return Fault(server.url(), ("AllocationExpired: ", "was it restarted?"), arrange)

    def unreachable() -> Fault:
        sock = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        words = ("ServerUnreachable: ", f"127.0.0.1 port {port}")
        return Fault(f"turn:u:p@127.0.0.1:{port}?transport=udp", words)

    def refused() -> Fault:
        words = ("ServerUnreachable: ", "127.0.0.1 port 9 over TCP")
        return Fault("turn:u:p@127.0.0.1:9?transport=tcp", words)

    faults = {
        "expired": expired,
        "quota": quota,
        "password": password,
        "TLS name": tls_name,
        "restarted": restarted,
        "unreachable": unreachable,
        "refused": refused,
    }
    with stack:
        yield lambda name: faults[name]()


FAULTS = ("restarted", "expired", "quota", "password", "TLS name", "unreachable", "refused")


async def call(alice: Any, bob: Any, transport: str | None = None) -> tuple[Any, str]:
    """Call; return the pipe, after a message has come through, and the report's text."""
    async with asyncio.timeout(LIMIT_S):
        pipe, _ = await auto_connect(
            alice, bob.address(), GUARD_S, plugins=["turn"], transport=transport
        )
        if pipe is not None:
            inbound = await bob.accept()
            await pipe.send(b"there")
            assert await inbound.recv(timeout=GUARD_S) == b"there"
            await pipe.close()
    return pipe, str(alice.last_report)


@pytest.mark.parametrize("name", FAULTS)
async def test_the_next_server_serves_and_the_fault_is_told(
    coturn: Start, pair: Pair, certificates: Any, fault: Any, name: str
) -> None:
    faulty, good = fault(name), coturn()
    # Nothing waits for a deadline: it is far away. A server that speaks has the time to.
    settings = {"ca_file": str(certificates[0]), "give_up_s": 60, "probe_s": 60}
    settings["stagger_s"] = 0.1 if name == "unreachable" else FIRST_S
    alice, bob = await pair([faulty.url, good.url("tcp")], [], **settings)
    first = pool_of(alice).servers.states[0]
    first.rtt_s = 0.0001  # so that it is the first, whatever its transport is
    if faulty.arrange is not None:
        await faulty.arrange(alice)
    pipe, text = await call(alice, bob)
    assert pipe is not None, text
    for words in faulty.words:
        assert words in text
    assert "won, datagrams (udp), relay (noted: " in text
    assert alice.last_report.as_dict()["attempts"][-1]["notes"]
    assert "wrong" not in text  # no password ever is


@pytest.mark.parametrize("name", ["expired", "quota", "password", "TLS name", "refused"])
async def test_the_same_for_a_stream(
    coturn: Start, pair: Pair, certificates: Any, fault: Any, name: str
) -> None:
    faulty, good = fault(name), coturn()
    url = faulty.url.replace("transport=udp", "transport=tcp")
    settings = {"ca_file": str(certificates[0]), "give_up_s": 60, "stagger_s": FIRST_S}
    alice, bob = await pair([url, good.url("tls")], [], **settings)
    pool_of(alice).servers.states[0].rtt_s = 0.0001
    if faulty.arrange is not None:
        await faulty.arrange(alice)
    pipe, text = await call(alice, bob, "tcp")
    assert pipe is not None, text
    for words in faulty.words:
        assert words in text
    assert "won, a stream (tcp), relay (noted: " in text


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "restarted"])
async def test_alone_it_is_the_reason_why_there_is_no_pipe(
    pair: Pair, certificates: Any, fault: Any, name: str
) -> None:
    faulty = fault(name)
    settings = {"ca_file": str(certificates[0]), "give_up_s": 1.0}
    alice, bob = await pair([faulty.url], [], **settings)
    if faulty.arrange is not None:
        await faulty.arrange(alice)
    pipe, text = await call(alice, bob)
    assert pipe is None
    (outcome,) = alice.last_report.outcomes
    assert outcome.status == "failed"
    for words in faulty.words:
        assert words in outcome.cause
        assert words in str(alice.last_report.error)
    assert text.count(faulty.words[1]) == 1  # nothing is said twice
    assert "wrong" not in text
    assert pool_of(alice).servers.states[0].why_bad


async def test_a_server_that_has_restarted_serves_again(pair: Pair, fault: Any) -> None:
    faulty = fault("restarted")
    alice, bob = await pair([faulty.url], [], give_up_s=60, probe_s=60)
    await faulty.arrange(alice)
    pipe, text = await call(alice, bob)
    assert pipe is not None, text
    for words in faulty.words:
        assert words in text


@pytest.mark.parametrize("whose", ["the caller's", "the peer's"])
@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_a_kept_relay_whose_server_hangs_is_replaced(
    coturn: Start, pair: Pair, certificates: Any, transport: str, whose: str
) -> None:
    hanging, good = coturn(), coturn()
    urls = [hanging.url(transport), good.url()]
    first, second = (urls, []) if whose == "the caller's" else ([], urls)
    settings = {"ca_file": str(certificates[0]), "give_up_s": 60, "probe_s": 60}
    settings["stagger_s"] = FIRST_S
    alice, bob = await pair(first, second, **settings)
    owner = alice if whose == "the caller's" else bob
    states = pool_of(owner).servers.states
    states[0].rtt_s = 0.0001
    pool_of(owner).prepare()
    await until(pool_of(owner).is_warm)
    assert states[1].rtt_s is None
    hanging.pause()
    pipe, text = await call(alice, bob)
    assert pipe is not None, text
    if owner is alice:
        assert "ServerSilent: " in text
    assert states[1].rtt_s is not None
    assert states[0].why_bad


@pytest.mark.parametrize("fault_in_use", ["hangs", "restarts", "hangs up"])
async def test_a_server_that_dies_in_use_comes_last_afterwards(
    coturn: Start, pair: Pair, fault_in_use: str
) -> None:
    dying, good = coturn(), coturn()
    transport = "tcp" if fault_in_use == "hangs up" else "udp"
    urls = [dying.url(transport), good.url()]
    alice, bob = await pair(urls, [], probe_s=0.3, give_up_s=1.0, stagger_s=FIRST_S)
    states = pool_of(alice).servers.states
    states[0].rtt_s = 0.0001
    async with asyncio.timeout(GUARD_S):
        pipe, _ = await auto_connect(alice, bob.address(), GUARD_S, plugins=["turn"])
        assert pipe is not None, str(alice.last_report)
        await bob.accept()
        assert not states[0].why_bad
        if fault_in_use == "hangs":
            dying.pause()
        else:
            dying.kill()
            if fault_in_use == "restarts":
                dying.start()
        await pipe.wait_closed()
    assert states[0].why_bad
    assert pool_of(alice).servers.ordered(asyncio.get_running_loop().time())[0] is states[1]
    pipe, text = await call(alice, bob)
    assert pipe is not None, text
    assert states[1].rtt_s is not None


@pytest.fixture
def mute() -> Iterator[Callable[..., int]]:
    """Return a function that opens a port of this machine on which nobody ever says anything."""
    with ExitStack() as stack:

        def start(kind: int, host: str = "127.0.0.1", port: int = 0) -> int:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = stack.enter_context(socket.socket(family, kind))
            sock.bind((host, port))
            if kind == socket.SOCK_STREAM:
                sock.listen()  # connections come up, and that is all
            return int(sock.getsockname()[1])

        yield start


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_a_port_that_says_nothing_is_not_waited_for(
    coturn: Start, pair: Pair, certificates: Any, mute: Any, transport: str
) -> None:
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    scheme = "turns" if transport == "tls" else "turn"
    url = f"{scheme}:u:p@127.0.0.1:{mute(kind)}?transport={transport}"
    settings = {"ca_file": str(certificates[0]), "give_up_s": 60}
    alice, bob = await pair([url, coturn().url("tls")], [], **settings)
    pool_of(alice).servers.states[0].rtt_s = 0.0001
    pipe, text = await call(alice, bob)
    assert pipe is not None, text
    assert "ServerUnreachable: " in text
    assert "had not answered after" in text


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_an_address_of_a_name_that_says_nothing_is_not_waited_for(
    coturn: Start, pair: Pair, mute: Any, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    server = coturn()
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    mute(kind, "::1", server.port)
    alice, bob = await pair([server.url(transport, host="turn.test")], [], give_up_s=60)
    plain = socket.getaddrinfo

    def lookup(host: Any, *args: Any, **options: Any) -> Any:
        if host != "turn.test":
            return plain(host, *args, **options)
        return [*plain("::1", *args, **options), *plain("127.0.0.1", *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    pipe, text = await call(alice, bob)
    assert pipe is not None, text
