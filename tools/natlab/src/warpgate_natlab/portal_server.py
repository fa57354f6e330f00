"""The captive portal's server: a program of its own, on the standard library alone.

``python portal_server.py PORT CERTIFICATE KEY``: it answers on TCP port PORT whatever comes there with
a redirect to a login page, within TLS by its own certificate where the client begins with TLS, and
on UDP port 53 every question for a name with the portal's own address.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import sys
import threading

ADDRESS, ADDRESS_V6 = "192.0.2.254", "2001:db8:100::fe"
DNS_PORT = 53
TLS_HANDSHAKE = 0x16
WAIT_S = 30.0
BODY = b"<html><body><h1>Welcome</h1>Log in to use this network.</body></html>\n"
PAGE = (
    b"HTTP/1.1 302 Found\r\nLocation: http://login.lab/\r\nContent-Type: text/html\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(BODY), BODY)
)


def serve(conn: socket.socket, context: ssl.SSLContext) -> None:
    """Answer one connection as soon as the client has said anything."""
    conn.settimeout(WAIT_S)
    with contextlib.suppress(OSError), conn:
        first = conn.recv(1, socket.MSG_PEEK)
        if first and first[0] == TLS_HANDSHAKE:
            conn = context.wrap_socket(conn, server_side=True)
        with conn:
            if conn.recv(4096):
                conn.sendall(PAGE)
                # Closed with bytes unread, the kernel would send a reset, which overtakes the page.
                if isinstance(conn, ssl.SSLSocket):
                    conn = conn.unwrap()
                conn.shutdown(socket.SHUT_WR)
                while conn.recv(4096):
                    pass


def reply(query: bytes) -> bytes | None:
    """Return the portal's own address for whatever name is asked for (RFC 1035 section 4)."""
    if len(query) < 17 or query[4:6] != b"\0\1":
        return None
    end = query.find(b"\0", 12) + 5  # the name's end, then type and class
    if end > len(query) or end < 17:
        return None
    addresses = {1: ipaddress.ip_address(ADDRESS), 28: ipaddress.ip_address(ADDRESS_V6)}
    address = addresses.get(int.from_bytes(query[end - 4 : end - 2], "big"))
    head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if address else b"\0\0") + b"\0\0\0\0"
    record = b""
    if address is not None:
        packed = address.packed
        record = (
            b"\xc0\x0c" + query[end - 4 : end] + b"\0\0\0\x05" + bytes((0, len(packed))) + packed
        )
    return head + query[12:end] + record


def names() -> None:
    """Answer questions for names."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", DNS_PORT))
        while True:
            query, source = sock.recvfrom(2048)
            answer = reply(query)
            if answer is not None:
                sock.sendto(answer, source)


def main(port: int, certificate: str, key: str) -> None:
    """Serve for ever."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    threading.Thread(target=names, daemon=True).start()
    with socket.create_server(
        ("::", port), family=socket.AF_INET6, dualstack_ipv6=True
    ) as listener:
        while True:
            conn, _ = listener.accept()
            threading.Thread(target=serve, args=(conn, context), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
