"""A strategy as anybody may write one: the public names and nothing else."""

from __future__ import annotations

from warpgate import Plugin, register


@register(phase="direct")
class Dial(Plugin):
    """Dials the peer."""

    name = "wgx_dial"
    transport = "tcp"

    async def run(self, reply=None):
        """Dial once."""
        route = await self.nic.route(self.af).bind()
        self.result.set_result(await route.connect((self.dest_info["ip"], self.dest_info["port"])))
