"""Merging, checking and the environment; every refusal says what was expected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate.errors import ConfigError
from warpgate.node import config as config_module
from warpgate.node.config import NodeConfig, make_config
from warpgate.node.node_defs import NODE_CONF, NODE_TEST_CONF
from warpgate.server_urls import TurnServer

KEYS = {
    "reuse_addr": (False, False),
    "enable_upnp": (True, False),
    "sig_pipe_no": (2, 0),
    "brokers": (None, []),
    "stun_servers": (None, []),
    "turn_servers": (None, []),
    "ntp_servers": (None, []),
    "install_path": (None, ":memory:"),
    "init_clock_skew": (True, False),
    "enable_punching": (True, True),
    "enable_nickname": (True, False),
    "enable_stun_clients": (True, False),
    "enable_turn": (True, True),
    "plugins": (None, None),
    "block_plugins": ([], []),
    "plugin_dirs": ([], []),
    "plugin_conf": ({}, {}),
    "seal": ("require", "require"),
    "accept_plain": (True, True),
    "allow": (None, None),
    "relay": ("last", "last"),
    "relay_after": (3, 3),
}
NODE_ID = "abcdefghijklmnopqrstuvwxyz234567" + "a" * 20


def test_the_two_dicts_are_the_contracts():
    assert (type(NODE_CONF), type(NODE_TEST_CONF)) == (dict, dict)
    assert {key: (NODE_CONF[key], NODE_TEST_CONF[key]) for key in KEYS} == KEYS
    assert set(NODE_CONF) == set(NODE_TEST_CONF) == set(KEYS)


def test_the_two_dicts_share_no_list():
    shared = [
        key
        for key, value in NODE_CONF.items()
        if isinstance(value, list | dict) and NODE_TEST_CONF[key] is value
    ]
    assert shared == []


def test_node_defs_stays_light():
    code = (
        "import sys; import warpgate.node.node_defs; "
        "print([m for m in ('asyncio', 'pydantic', 'pluggy', 'cryptography') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(config_module.__file__).parents[2])},
    )
    assert run.stdout.strip() == "[]"


# The mapping.


def test_the_result_has_every_key_and_get():
    conf = make_config({"relay": "never"}, {})
    assert set(conf) == set(NODE_CONF)
    assert len(conf) == len(NODE_CONF)
    assert (conf["relay"], conf.get("relay")) == ("never", "never")
    assert conf.get("enable_turn", False) is True
    assert conf.get("nothing", "default") == "default"
    assert "relay" in conf


def test_the_result_is_read_only_and_apart_from_what_was_given():
    given = {"block_plugins": ["turn"], "plugin_conf": {"mine": 1}}
    conf = make_config(given, {})
    given["block_plugins"].append("other")
    given["plugin_conf"]["mine"] = 2
    assert conf["block_plugins"] == ("turn",)
    assert conf["plugin_conf"] == {"mine": 1}
    with pytest.raises(TypeError):
        conf["relay"] = "never"
    with pytest.raises(TypeError):
        conf["plugin_conf"]["mine"] = 3


def test_a_checked_configuration_is_taken_as_it_is():
    conf = make_config(NODE_TEST_CONF, {})
    assert make_config(conf, {"WARPGATE_STUN": "other"}) is conf


@pytest.mark.parametrize("conf", [None, {}, NODE_CONF, NODE_TEST_CONF])
def test_the_usual_configurations_are_fine(conf):
    assert isinstance(make_config(conf, {}), NodeConfig)


def test_its_text_holds_no_password():
    conf = make_config(
        {"brokers": ["mqtts://me:secret@host"], "turn_servers": ["turn:me:secret@host"]}, {}
    )
    assert "secret" not in repr(conf)
    assert "mqtts://…@host" in repr(conf)


# Refusals.


def refusal(conf, environ=None):
    with pytest.raises(ConfigError) as caught:
        make_config(conf, environ or {})
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("relay_affter", "relay_after"),
        ("brokerss", "brokers"),
        ("enable_stun_client", "enable_stun_clients"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(key, near):
    text = refusal({key: 1})
    assert repr(key) in text
    assert f"did you mean {near!r}?" in text
    assert "plugin_conf" in text


def test_an_unknown_key_without_a_near_one_lists_all():
    text = refusal({"zzzzzzzz": 1})
    assert all(key in text for key in NODE_CONF)
    assert "7" in refusal({7: 1})


@pytest.mark.parametrize("conf", [[("relay", "last")], "relay", 5])
def test_what_is_no_mapping_is_refused(conf):
    assert type(conf).__name__ in refusal(conf)


WRONG = [
    *[
        (key, value, "True or False")
        for key, usual in KEYS.items()
        if isinstance(usual[0], bool)
        for value in (1, "yes", None)
    ],
    *[("sig_pipe_no", value, "whole number from 0 up") for value in (-1, 1.0, True, "2", None)],
    *[
        (key, value, "a list of")
        for key in ("brokers", "stun_servers", "turn_servers", "ntp_servers")
        for value in ("host", [5], {"host": 1}, 5)
    ],
    *[("install_path", value, "a folder") for value in (5, "", b"x", [])],
    *[("plugins", value, "a list of names, or None") for value in ("turn", [5], {"turn"}, 5)],
    *[("block_plugins", value, "a list of names") for value in ("turn", [5], None)],
    *[("plugin_dirs", value, "a list of folders") for value in ("/x", [5], None)],
    *[("plugin_conf", value, "a dict") for value in ([], None, {5: 1})],
    *[("seal", value, '"require", "prefer" or "off"') for value in ("on", True, None)],
    *[("allow", value, "node ids or names") for value in (NODE_ID, [5], 5)],
    *[("relay", value, '"last", "prefer" or "never"') for value in ("first", None, 1)],
    *[
        ("relay_after", value, "seconds from 0 up")
        for value in (-0.1, "3", None, True, float("nan"), float("inf"))
    ],
]


@pytest.mark.parametrize(("key", "value", "expected"), WRONG)
def test_a_wrong_value_is_refused_with_key_value_expectation_and_mend(key, value, expected):
    text = refusal({key: value})
    assert text.startswith(f"{key} = ")
    assert expected in text
    assert f"use {NODE_CONF[key]!r} or leave it out" in text
    assert "\n" not in text


def test_every_wrong_value_gets_its_line():
    lines = refusal({"relay": 1, "reuse_addr": 1, "sig_pipe_no": -1}).splitlines()
    assert sorted(line.partition(" = ")[0] for line in lines) == [
        "relay",
        "reuse_addr",
        "sig_pipe_no",
    ]


@pytest.mark.parametrize("name", ["two words", "", "line\n", "x" * 256])
def test_allow_refuses_what_is_neither_id_nor_name(name):
    assert "neither a node id nor a name" in refusal({"allow": [name]})


def test_values_that_are_fine():
    conf = make_config(
        {
            "allow": [NODE_ID, "alice"],
            "relay_after": 0,
            "sig_pipe_no": 0,
            "plugins": (),
            "plugin_dirs": [Path("plugins"), "more"],
            "relay": "prefer",
            "plugin_conf": {"turn": {"anything": object}},
        },
        {},
    )
    assert conf["allow"] == (NODE_ID, "alice")
    assert (conf["relay_after"], conf["plugins"]) == (0, ())
    assert conf["plugin_dirs"] == (Path("plugins"), "more")
    assert conf["plugin_conf"]["turn"]["anything"] is object
    assert make_config({"relay_after": 0.25}, {})["relay_after"] == 0.25


# Folders.


def test_install_path():
    assert make_config({"install_path": ":memory:"}, {}).folder is None
    assert make_config({"install_path": ":memory:"}, {})["install_path"] == ":memory:"
    assert make_config({"install_path": "/some/where"}, {}).folder == Path("/some/where")
    assert make_config({"install_path": Path("here")}, {}).folder == Path("here")
    assert make_config({"install_path": "~/here"}, {}).folder == Path.home() / "here"
    assert make_config({}, {}).folder == platformdirs.user_data_path("warpgate", appauthor=False)


# Servers.

VARIABLES = {
    "brokers": ("WARPGATE_BROKERS", "mqtt://one, mqtts://two:1", ("mqtt://one", "mqtts://two:1")),
    "stun_servers": ("WARPGATE_STUN", "one:1, [::1]", ("one:1", "[::1]:3478")),
    "turn_servers": (
        "WARPGATE_TURN",
        "turn:u:p@one",
        (TurnServer("one", 3478, "u", "p", "udp"),),
    ),
    "ntp_servers": ("WARPGATE_NTP", "one,two:5", ("one:123", "two:5")),
}


@pytest.mark.parametrize("key", VARIABLES)
def test_servers_come_from_the_configuration_the_environment_or_the_defaults(key):
    variable, text, parsed = VARIABLES[key]
    assert make_config({}, {variable: text})[key] == parsed
    assert make_config({key: None}, {variable: text})[key] == parsed
    assert make_config({key: []}, {variable: text})[key] == ()
    assert make_config({key: text.split(",")[:1]}, {variable: "ignored:9"})[key] == parsed[:1]
    assert make_config({}, {variable: ""})[key] == ()
    assert make_config({}, {variable: " , "})[key] == ()
    assert make_config({}, {})[key] == ()


def test_the_documented_defaults_name_no_third_partys_server():
    names = (
        "DEFAULT_BROKERS",
        "DEFAULT_STUN_SERVERS",
        "DEFAULT_TURN_SERVERS",
        "DEFAULT_NTP_SERVERS",
    )
    assert [getattr(config_module, name) for name in names] == [()] * 4


@pytest.mark.parametrize("key", VARIABLES)
def test_a_wrong_server_in_the_environment_names_the_variable(key):
    variable = VARIABLES[key][0]
    text = refusal({}, {variable: "no server!"})
    assert text.startswith(f"{variable} = ")
    assert "entry 1: " in text
    assert "unset it" in text


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("WARPGATE_STUN", "from.environment:9")
    assert make_config()["stun_servers"] == ("from.environment:9",)


def test_a_refused_server_is_shown_without_its_password():
    for conf in (
        {"brokers": ["mqtt://me:secret@host:99999"]},
        {"turn_servers": ["turn:me:secret@host:99999"]},
        {"turn_servers": [{"host": "h", "user": "me", "password": "secret", "port": -1}]},
        {"turn_servers": "turn:me:secret@host"},
    ):
        assert "secret" not in refusal(conf)


# No letter of the passwords below is in a refusal's own words.
SECRETS = st.text(alphabet="QXZJ0:@/?#%,[]&=. ", min_size=6, max_size=20)
FORMS = [
    "mqtt://u:{}@h",
    "mqtt://u:{}",
    "mqtt://u:{}%40h",
    "mqtt://u:{}@h:99999",
    "wss://h/mqtt?token={}",
    "http://u:{}@h",
    "turn:u:{}",
    "turn:u:{}@h",
    "turn:u:{}@h?transport=sctp",
    "turn:u:p@h?transport={}",
    "turns:u:{}@h?transport=udp",
]
SERVER_KEYS = ["brokers", "turn_servers", "stun_servers", "ntp_servers"]


def told(conf, environ=None):
    """Return what is said about a configuration, refused or not."""
    try:
        return repr(make_config(conf, environ or {}))
    except ConfigError as error:
        return str(error)


def leaks(text):
    return set("QXZJ") & set(text)


@given(st.sampled_from(FORMS), SECRETS, st.sampled_from(SERVER_KEYS), st.booleans())
def test_no_password_is_in_any_refusal(form, secret, key, broken):
    server = form.format(secret)
    others = ["no server!"] if broken else []
    variable = VARIABLES[key][0]
    for conf, environ in (
        ({key: [server, *others]}, {}),
        ({key: [*others, server]}, {}),
        ({key: server}, {}),
        ({key: server.encode()}, {}),
        ({}, {variable: ", ".join([server, *others])}),
    ):
        text = ""
        try:
            make_config(conf, environ)
        except ConfigError as error:
            text = str(error)
        assert not leaks(text)


@given(SECRETS, st.sampled_from(["passwd", "password", "user", "pass", "credential"]))
def test_of_a_turn_servers_dict_only_place_and_transport_are_shown(secret, key):
    for more in ({}, {"host": "h", "user": "u"}, {"host": f"turn:u:{secret}@h", "port": 1}):
        text = told({"turn_servers": [{**more, key: secret}]})
        assert not leaks(text)
    assert "'host': 'h'" in told({"turn_servers": [{"host": "h", "passwd": secret}]})


def test_strategies_settings_stay_out_of_texts():
    conf = {"plugin_conf": {"turn": {"password": "QXZJ"}}}
    assert not leaks(told(conf))
    assert not leaks(told({"plugin_conf": [conf]}))


def test_turn_servers_may_be_dicts():
    server = {"host": "h", "user": "u", "password": "p", "transport": "tls"}
    conf = make_config({"turn_servers": [server]}, {})
    assert conf["turn_servers"] == (TurnServer("h", 5349, "u", "p", "tls"),)
    assert (
        make_config({"turn_servers": conf["turn_servers"]}, {})["turn_servers"]
        == (conf["turn_servers"])
    )
