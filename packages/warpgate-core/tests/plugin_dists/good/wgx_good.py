"""A plugin without fault."""

from warpgate import Plugin, register


@register(phase="direct")
class Good(Plugin):
    name = "wgx_good"
    transport = "tcp"

    async def run(self, reply=None):
        self.result.set_result(None)
