"""In which order servers are tried, and with which credentials."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from warpgate.server_urls import TurnServer, parse_turn
from warpgate_plugin_turn.credentials import VALID_S, expired, time_limited, with_credentials
from warpgate_plugin_turn.servers import BAD_S, ServerList


def server(name: str, transport: str = "udp", port: int = 3478) -> TurnServer:
    return TurnServer(name, port, "user", "password", transport)


def order(servers: ServerList, now: float = 0.0, **options: bool) -> list[str]:
    states = servers.ordered(now, **options)
    return [f"{state.server.host} {state.server.transport}" for state in states]


def test_unmeasured_ones_come_as_configured_by_transport() -> None:
    servers = ServerList([server("a", "tls"), server("a", "udp"), server("b", "tcp"), server("b")])
    assert order(servers) == ["a udp", "b udp", "b tcp", "a tls"]
    assert order(servers, udp_blocked=True) == ["b tcp", "a tls", "a udp", "b udp"]


def test_the_nearest_comes_first() -> None:
    servers = ServerList([server("far"), server("new"), server("near")])
    far, _, near = servers.states
    far.worked(0.08)
    near.worked(0.02)
    assert order(servers) == ["near udp", "far udp", "new udp"]


def test_a_stream_must_be_clearly_nearer_than_datagrams() -> None:
    servers = ServerList([server("a", "tcp"), server("a", "udp")])
    tcp, udp = servers.states
    tcp.worked(0.050)
    udp.worked(0.051)
    assert order(servers) == ["a udp", "a tcp"]
    tcp.worked(0.020)
    assert order(servers) == ["a tcp", "a udp"]


def test_a_bad_one_comes_last_for_a_while() -> None:
    servers = ServerList([server("a"), server("b")])
    servers.states[0].worked(0.01)
    servers.states[0].failed("no answer", 100.0)
    assert order(servers, 100.0 + BAD_S - 1) == ["b udp", "a udp"]
    assert order(servers, 100.0 + BAD_S) == ["a udp", "b udp"]
    servers.states[0].failed("no answer", 300.0)
    servers.states[0].worked(0.01)
    assert order(servers, 301.0) == ["a udp", "b udp"]


def test_where_only_tcp_443_gets_out_those_come_first_that_stand_there() -> None:
    servers = ServerList(
        [server("a"), server("b", "udp", 443), server("a", "tcp"), server("a", "tls", 443)]
    )
    assert order(servers, udp_blocked=True) == ["a tcp", "a tls", "a udp", "b udp"]
    servers.https_only = True
    assert order(servers, udp_blocked=True) == ["a tls", "a tcp", "a udp", "b udp"]
    servers.states[2].worked(0.01)
    assert order(servers, udp_blocked=True)[0] == "a tls"
    servers.states[3].failed("no answer", 100.0)
    assert order(servers, 101.0, udp_blocked=True)[-1] == "a tls"


def test_a_shared_secret_makes_user_names_that_end() -> None:
    # printf 1700000000:x | openssl dgst -sha1 -hmac north -binary | base64
    assert time_limited("north", 1_700_000_000, "x") == (
        "1700000000:x",
        "VfuvcFeO8Kni083/bCKUEsscHGw=",
    )
    plain = parse_turn("turn::north@turn.test")
    made = with_credentials(plain, 1_000_000_000)
    assert made.user == f"{1_000_000_000 + VALID_S}:warpgate"
    assert made.password == time_limited("north", 1_000_000_000 + VALID_S)[1]
    named = server("a")
    assert with_credentials(named, 0) is named


def test_which_user_names_have_ended() -> None:
    assert expired("1700000000:alice", 1_700_000_060) == 60
    assert expired("1700000000", 1_700_000_060) == 60
    assert expired("1700000000:alice", 1_700_000_000) is None
    assert expired("alice", 1_700_000_000) is None
    assert expired("12345:alice", 1_700_000_000) is None


@given(st.text(max_size=40))
def test_any_user_name(user: str) -> None:
    expired(user, 1_700_000_000)


def test_passwords_stand_in_no_text() -> None:
    assert "password" not in repr(server("a")).replace("TurnServer", "")
    assert "'password'" not in repr(ServerList([server("a")]).states[0])
