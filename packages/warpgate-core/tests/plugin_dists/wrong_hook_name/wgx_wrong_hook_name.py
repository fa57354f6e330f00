from warpgate import hookimpl


@hookimpl
def warpgate_evnt(node, event):
    pass
