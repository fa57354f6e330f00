from __future__ import annotations

import socket
import ssl
import struct
import sys
from collections.abc import Iterator

import pytest

from warpgate.server_urls import parse_broker, parse_host_port, parse_turn
from warpgate_natlab import Lab
from warpgate_natlab.pytest_plugin import Factory
from warpgate_natlab.sockets import dial, receive
from warpgate_natlab.topology import BROKERS, NTP, STUN, server_v6

pytestmark = pytest.mark.netns

COOKIE = b"\x21\x12\xa4\x42"
CONNECT = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04test"  # MQTT 3.1.1


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("port-restricted", "v6-firewalled", servers="all") as built:
        yield built


def stun(
    sock: socket.socket, server: tuple[str, int], flags: int | None = None
) -> tuple[str, int] | None:
    """Ask for a binding; return the address that the answer came from."""
    attribute = b"" if flags is None else struct.pack("!HHI", 3, 4, flags)  # CHANGE-REQUEST
    sock.sendto(
        struct.pack("!HH", 1, len(attribute)) + COOKIE + b"natlab-tests" + attribute, server
    )
    came = receive([sock], 1, 1)
    assert all(data[:2] == b"\x01\x01" for _, data, _ in came)
    return came[0][2] if came else None


def test_stun_answers_on_two_addresses_and_changes_them(lab: Lab) -> None:
    with lab.net.socket(ip="192.0.2.100") as sock:
        for host in STUN:
            assert stun(sock, (host, 3478)) == (host, 3478)
        # RFC 5780: change the port (2), the address (4), both (6).
        assert stun(sock, (STUN[0], 3478), 2) == (STUN[0], 3479)
        assert stun(sock, (STUN[0], 3478), 4) == (STUN[1], 3478)
        assert stun(sock, (STUN[0], 3478), 6) == (STUN[1], 3479)


@pytest.mark.parametrize("which", ["a", "b"])
def test_turn_listens_on_every_transport(lab: Lab, which: str) -> None:
    families = lab.host(which).families
    servers = [parse_turn(url) for url in lab.servers.turn(families)]
    assert [server.transport for server in servers] == ["udp", "tcp", "tls", "tls"]
    allocate = b"\x00\x03\x00\x08" + COOKIE + b"natlab-tests" + b"\x00\x19\x00\x04\x11\0\0\0"
    for server in servers:
        kind = socket.SOCK_DGRAM if server.transport == "udp" else socket.SOCK_STREAM
        family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
        sock = lab.host(which).socket(kind, family=family)
        sock.settimeout(2)
        sock.connect((server.host, server.port))
        if server.transport == "tls":
            assert lab.servers.ca_file is not None
            context = ssl.create_default_context(cafile=str(lab.servers.ca_file))
            sock = context.wrap_socket(sock, server_hostname=server.host)
        with sock:
            sock.sendall(allocate)
            answer = sock.recv(2000)
        assert answer[:2] == b"\x01\x13"  # refused with 401 and a nonce: credentials are wanted
        assert b"lab" in answer


@pytest.mark.parametrize("https", [False, True])
@pytest.mark.parametrize("which", ["a", "b"])
def test_both_brokers_take_clients(lab: Lab, which: str, https: bool) -> None:
    families = lab.host(which).families
    urls = [parse_broker(url) for url in lab.servers.brokers(families, https)]
    assert len(urls) == len(BROKERS)
    for url in urls:
        family = socket.AF_INET6 if ":" in url.host else socket.AF_INET
        sock = lab.host(which).socket(socket.SOCK_STREAM, family=family)
        sock.settimeout(2)
        sock.connect((url.host, url.port))
        if url.scheme == "mqtts":
            assert url.port == 443
            context = ssl.create_default_context(cafile=str(lab.servers.ca_file))
            sock = context.wrap_socket(sock, server_hostname=url.host)
        with sock:
            sock.sendall(CONNECT)
            assert sock.recv(4) == b"\x20\x02\x00\x00"


def test_the_time_server_tells_the_time(lab: Lab) -> None:
    assert parse_host_port(lab.servers.ntp()[0], 0) == (NTP, 123)
    for ip, host in ((NTP, lab.a), (server_v6(NTP), lab.b)):
        with host.socket(ip=host.ip) as sock:
            sock.sendto(b"\x23" + bytes(47), (ip, 123))
            ((_, data, _),) = receive([sock], 1, 1)
        assert data[0] & 7 == 4
        assert data[1] == 2 or data[1] == 1


def test_nodes_are_told_of_the_servers_they_can_reach(lab: Lab) -> None:
    a, b = lab.environ("a"), lab.environ("b")
    # No family in common: a broker in common can only be one by name.
    assert a["WARPGATE_BROKERS"] == "mqtt://broker0.lab:1883,mqtt://broker1.lab:1883"
    assert b["WARPGATE_BROKERS"] == a["WARPGATE_BROKERS"]
    look = [sys.executable, "-c", "import socket; print(socket.gethostbyname('broker0.lab'))"]
    assert lab.a.run(look).stdout.strip() == "192.0.2.10"
    look[-1] = "import socket; print(socket.getaddrinfo('broker0.lab', 1)[0][4][0])"
    assert lab.b.run(look).stdout.strip() == "2001:db8:100::10"
    assert "[2001:db8:100::20]" in b["WARPGATE_STUN"]
    assert a["WARPGATE_STUN"].split(",") == ["192.0.2.20:3478", "192.0.2.21:3478"]


def test_behind_https_only_everything_is_on_port_443(natlab: Factory) -> None:
    lab = natlab("https-only", "open", servers=["mqtt"])
    assert lab.environ("a")["WARPGATE_BROKERS"].startswith("mqtts://192.0.2.10:443")
    assert lab.environ("b")["WARPGATE_BROKERS"] == lab.environ("a")["WARPGATE_BROKERS"]
    with lab.a.socket(socket.SOCK_STREAM) as sock:
        assert dial(sock, (BROKERS[0], 443), 1) == 0
    with lab.a.socket(socket.SOCK_STREAM) as sock:
        assert dial(sock, (BROKERS[0], 1883), 0.3) != 0


def test_without_servers_nodes_are_told_of_none(natlab: Factory) -> None:
    lab = natlab("open", "open")
    assert lab.environ("a")["WARPGATE_BROKERS"] == ""
    with pytest.raises(ValueError, match="no server 'gopher'"):
        lab.servers.start(["gopher"])


@pytest.fixture(scope="module")
def home() -> Iterator[Lab]:
    with Lab("linux-upnp", "open") as built:
        yield built


def reached(home: Lab, port: int) -> bool:
    with home.a.socket(ip=home.a.ip, port=port) as host, home.b.socket(ip=home.b.ip) as stranger:
        stranger.sendto(b"knock", (home.a.public_ip, port))
        return bool(receive([host], 0.3, 1))


def ask(home: Lab, request: bytes) -> bytes:
    with home.a.socket(ip=home.a.ip) as sock:
        sock.sendto(request, ("192.168.1.1", 5351))
        ((_, data, _),) = receive([sock], 2, 1)
        return data


def test_nat_pmp_maps_ports(home: Lab) -> None:
    assert not reached(home, 5001)
    assert ask(home, b"\0\0")[8:] == socket.inet_aton(home.a.public_ip)
    data = ask(home, struct.pack("!BBHHHI", 0, 1, 0, 5001, 5001, 3600))
    assert struct.unpack("!BBHIHHI", data)[2::3] == (0, 5001)
    assert reached(home, 5001)


def test_pcp_maps_ports(home: Lab) -> None:
    mapped = bytes(10) + b"\xff\xff"
    request = struct.pack("!BBHI", 2, 1, 0, 3600) + mapped + socket.inet_aton(home.a.ip)
    request += b"natlab-nonce" + struct.pack("!BxxxHH", 17, 5002, 5002) + mapped + bytes(4)
    data = ask(home, request)
    assert data[:4] == b"\x02\x81\x00\x00"
    assert data[-4:] == socket.inet_aton(home.a.public_ip)
    assert reached(home, 5002)


def test_upnp_is_found(home: Lab) -> None:
    search = (
        b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\n'
        b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
    )
    with home.a.socket(ip=home.a.ip) as sock:
        sock.sendto(search, ("239.255.255.250", 1900))
        ((_, data, _),) = receive([sock], 2, 1)
    location = data.split(b"LOCATION: ")[1].split(b"\r\n")[0].decode()
    fetch = f"import urllib.request as r; print(r.urlopen({location!r}, timeout=3).read().decode())"
    assert "WANIPConnection" in home.a.python(fetch).stdout
