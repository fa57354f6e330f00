from warpgate import hookimpl


@hookimpl
async def warpgate_event(node, event):
    pass
