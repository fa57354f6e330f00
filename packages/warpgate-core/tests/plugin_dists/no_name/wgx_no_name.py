from warpgate import Plugin, register


@register(phase="direct")
class Strategy(Plugin):
    transport = "tcp"

    async def run(self, reply=None):
        self.result.set_result(None)
