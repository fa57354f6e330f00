from warpgate import Plugin, register


@register(phase="direct")
class Strategy(Plugin):
    name = "wgx_sync_run"
    transport = "tcp"

    def run(self, reply=None):
        self.result.set_result(None)
