"""A captive portal in an access link: until someone logs in, it answers for the whole internet.

::

    a eth0 ── NATs, firewalls ── access link ── portal        captive
    a eth0 ── NATs, firewalls ── access link ── inet          after the login

Every TCP connection, to whatever address and port, is made with the portal, which sends a login page
(see :mod:`warpgate_natlab.portal_server`). UDP gets no answer, but for DNS: the portal is every name's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .authority import make_authority
from .namespaces import LabError, command, inside, make
from .portal_server import ADDRESS, ADDRESS_V6, DNS_PORT

if TYPE_CHECKING:
    from .lab import Lab

PORT: Final = 8080
_RULES: Final = f"""
table inet portal {{
    chain prerouting {{
        type nat hook prerouting priority -100; policy accept;
        meta l4proto tcp redirect to :{PORT}
        udp dport {DNS_PORT} redirect to :{DNS_PORT}
    }}
}}
"""


class Portal:
    """One access link's portal; made captive and open again at will.

    Args:
        lab: the laboratory.
        link: the engine's name of the access link.

    Attributes:
        captive: whether the portal is what the link leads to.

    Raises:
        LabError: nftables is missing, or the server does not start.

    """

    def __init__(self, lab: Lab, link: str) -> None:
        self.captive = False
        self._lab = lab
        self._link = link
        self._device = f"portal_{link.removeprefix('access_')}"
        role = link.removeprefix("access_") + "-portal"
        self.space = make(lab.run, [role])[role]
        nft = command("nft")
        if nft is None:
            raise LabError("a captive portal needs the command nft (Debian package nftables)")
        with inside(self.space.name):
            done = subprocess.run(
                [nft, "-f", "-"], input=_RULES, text=True, capture_output=True, check=False
            )
        if done.returncode:
            raise LabError(f"nft refused the portal's rules: {done.stderr}")
        device = {
            "netns": self.space.name,
            "name": "eth0",
            "addresses": [f"{ADDRESS}/32", f"{ADDRESS_V6}/128"],
            "routes": ["default"],
        }
        lab.engine.ask("add", devices={self._device: device})
        folder = lab.run.folder / role
        folder.mkdir()
        _, certificate, key = make_authority(folder, [ADDRESS])  # an authority that nobody knows
        program = Path(__file__).with_name("portal_server.py")
        argv = [sys.executable, "-I", "-S", program, PORT, certificate, key]
        lab.servers.start_portal(self.space, role, list(map(str, argv)), (ADDRESS, PORT))

    def capture(self) -> None:
        """Let the link lead to the portal."""
        if not self.captive:
            self._plug(self._device)
            self.captive = True

    def login(self) -> None:
        """Let the link lead to the internet again."""
        if self.captive:
            self._plug(self._lab.topology.engine["links"][self._link]["b"])
            self.captive = False

    def _plug(self, outer: str) -> None:
        """Give the link another outer end; its impairments stay."""
        engine = self._lab.engine
        found: dict[str, Any] = engine.ask("describe")["links"][self._link]
        engine.ask("remove", link=self._link)
        engine.ask("add", links={self._link: {**found, "b": outer}})
