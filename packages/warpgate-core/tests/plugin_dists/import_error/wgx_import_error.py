import wgx_no_such_dependency  # noqa: F401

from warpgate import Plugin, register


@register(phase="direct")
class Strategy(Plugin):
    name = "wgx_import_error"
    transport = "tcp"

    async def run(self, reply=None):
        self.result.set_result(None)
