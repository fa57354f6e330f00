"""Time-limited user names: the shared-secret scheme of coturn's ``use-auth-secret``; PURE.

The user name is ``<Unix time of its end>:<any name>``, the password the base64 form of HMAC-SHA1 of
the user name under the secret (draft-uberti-behave-turn-rest-00 section 2.2).
"""

from __future__ import annotations

import base64
import hmac
import re
from dataclasses import replace
from typing import Final

from warpgate.server_urls import TurnServer

VALID_S: Final = 12 * 3600
NAME: Final = "warpgate"

_TIME_LIMITED = re.compile(r"(\d{9,11})(:.*)?")


def time_limited(secret: str, until: int, name: str = NAME) -> tuple[str, str]:
    """Return user name and password for a shared secret.

    Args:
        secret: ``static-auth-secret`` of the server.
        until: when they end, in Unix seconds.
        name: what stands behind the time, for the server's log.

    """
    user = f"{until}:{name}"
    return user, base64.b64encode(hmac.digest(secret.encode(), user.encode(), "sha1")).decode()


def with_credentials(server: TurnServer, unix_time: int) -> TurnServer:
    """Return a server whose user name can be used: an empty one means a shared secret."""
    if server.user:
        return server
    user, password = time_limited(server.password, unix_time + VALID_S)
    return replace(server, user=user, password=password)


def expired(user: str, unix_time: int) -> int | None:
    """Return how many seconds ago a time-limited user name ended; None: not so, or no such name."""
    match = _TIME_LIMITED.fullmatch(user)
    if match is None or int(match[1]) >= unix_time:
        return None
    return unix_time - int(match[1])
