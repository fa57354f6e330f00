from warpgate import Plugin, register


@register(phase="direct")
class Turn(Plugin):
    name = "turn"
    transport = "tcp"

    async def run(self, reply=None):
        self.result.set_result(None)
