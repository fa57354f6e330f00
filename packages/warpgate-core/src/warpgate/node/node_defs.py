"""The settings of a node: the usual ones, and those for tests without any server.

Plain dicts: copy one, change what you like, and give it to :class:`~warpgate.Node`. What each key
means stands in the documentation of :mod:`warpgate.node.config`.
"""

from __future__ import annotations

from typing import Any

NODE_CONF: dict[str, Any] = {
    "reuse_addr": False,
    "enable_upnp": True,
    "sig_pipe_no": 2,
    "brokers": None,
    "stun_servers": None,
    "turn_servers": None,
    "ntp_servers": None,
    "install_path": None,
    "init_clock_skew": True,
    "enable_punching": True,
    "enable_nickname": True,
    "enable_stun_clients": True,
    "enable_turn": True,
    "plugins": None,
    "block_plugins": [],
    "plugin_dirs": [],
    "plugin_conf": {},
    "seal": "require",
    "accept_plain": True,
    "allow": None,
    "relay": "last",
    "relay_after": 3,
}

NODE_TEST_CONF: dict[str, Any] = {
    **NODE_CONF,
    "enable_upnp": False,
    "sig_pipe_no": 0,
    "brokers": [],
    "stun_servers": [],
    "turn_servers": [],
    "ntp_servers": [],
    "install_path": ":memory:",
    "init_clock_skew": False,
    "enable_nickname": False,
    "enable_stun_clients": False,
    "block_plugins": [],
    "plugin_dirs": [],
    "plugin_conf": {},
}
