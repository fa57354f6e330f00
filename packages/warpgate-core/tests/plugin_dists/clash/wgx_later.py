"""Claims the name of wgx-good, which is sorted before it."""

from warpgate import Plugin, register


@register(phase="direct")
class Later(Plugin):
    name = "wgx_good"
    transport = "tcp"

    async def run(self, reply=None):
        self.result.set_result(None)
