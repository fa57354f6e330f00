"""One running endpoint: configuration, life cycle, address.

Nothing is re-exported here: a function called ``auto_connect`` would hide the module of that name.
"""
