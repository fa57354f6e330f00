from warpgate import Plugin, register


@register(phase="direct")
class Strategy(Plugin):
    name = "wgx_other_api"
    transport = "tcp"
    api = 2

    async def run(self, reply=None):
        self.result.set_result(None)
