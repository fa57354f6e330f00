from warpgate import hookimpl


@hookimpl
def warpgate_event(node, evnt):
    pass
