"""The default gateway where the core does not know it: from what macOS and Windows print."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from typing import Final

from warpgate.net.constants import IP4, IP6
from warpgate.protocol.ip import is_link_local, parse_ip, split_scope

COMMAND_S: Final = 5.0
_COMMANDS: Final = {
    ("darwin", IP4): ("/usr/sbin/netstat", "-rn", "-f", "inet"),
    ("darwin", IP6): ("/usr/sbin/netstat", "-rn", "-f", "inet6"),
    ("win32", IP4): ("route", "print", "-4", "0.0.0.0"),
    ("win32", IP6): ("route", "print", "-6", "::/0"),
}


async def find_gateway(af: int, interface: str, platform: str = sys.platform) -> str | None:
    """Return the default gateway's address, None where it can't be found out.

    On Linux the core has read it from ``/proc`` already; what it does not know is not there.

    Args:
        af: the family.
        interface: the interface's name; on Windows the best default route counts.
        platform: as ``sys.platform``.

    """
    command = _COMMANDS.get((platform, af))
    if command is None:
        return None
    try:
        text = await asyncio.to_thread(_output, command)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_netstat(text, interface) if platform == "darwin" else parse_route_print(text)


def _output(command: tuple[str, ...]) -> str:
    done = subprocess.run(  # noqa: S603  # a fixed command, no shell
        command,
        capture_output=True,
        timeout=COMMAND_S,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout.decode("utf-8", "replace")


def parse_netstat(text: str, interface: str) -> str | None:
    """Return the gateway of an interface's default route, as BSD's ``netstat -rn`` prints it."""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 4 and words[0] == "default" and interface in words[3:]:
            bare, scope = split_scope(words[1])
            if parse_ip(bare) is not None:
                local = is_link_local(bare) and ":" in bare
                return f"{bare}%{scope or interface}" if local else bare
    return None


def parse_route_print(text: str) -> str | None:
    """Return the gateway of the best default route, as Windows' ``route print`` prints it.

    The words round the table are in the user's language, the table itself is not.
    """
    found: list[tuple[int, str]] = []
    for line in text.splitlines():
        four = re.match(r"\s*0\.0\.0\.0\s+0\.0\.0\.0\s+(\S+)\s+\S+\s+(\d+)\s*$", line)
        six = re.match(r"\s*(\d+)\s+(\d+)\s+::/0\s+(\S+)\s*$", line)
        if four and parse_ip(four[1]) is not None:
            found.append((int(four[2]), four[1]))
        elif six and parse_ip(six[3]) is not None:
            local = is_link_local(six[3])
            found.append((int(six[2]), f"{six[3]}%{six[1]}" if local else six[3]))
    return min(found)[1] if found else None
