"""Somebody else who answers: what a captive network's portal sends in everybody's stead; PURE.

Such a network (a hotel's, a train's) takes every connection itself until someone has logged in.
"""

from __future__ import annotations

from typing import Final

LOGIN_HINT: Final = "a login page of this network?"
LOG_IN: Final = "open a web browser and log in"
ALERT: Final = 0x15
"""The content type of a TLS alert (RFC 8446 section 5.1)."""
TLS_MAJOR: Final = 3
_STARTS: Final = (b"HTTP/", b"<!DOCTYPE", b"<html", b"<HTML", b"<!doctype")


def is_web_page(data: bytes) -> bool:
    """Return whether a stream that begins with ``data`` is a web server's answer."""
    return bytes(data[:9]).startswith(_STARTS)


def what_speaks(data: bytes) -> str:
    """Return in words what a stream that should have spoken our protocol began with instead."""
    if is_web_page(data):
        return f"a web page came, and not the peer: {LOGIN_HINT}"
    if len(data) >= 2 and data[0] == ALERT and data[1] == TLS_MAJOR:
        return f"a TLS server answered, and not the peer: {LOGIN_HINT}"
    return "the stream does not go on with a message's magic"
