"""No secret stands in a log, a report, a repr or an exception of a whole session."""

# ruff: noqa: ASYNC110, ASYNC221  # a broker's state has no event; mosquitto_passwd is quick

from __future__ import annotations

import asyncio
import base64
import logging
import subprocess
import traceback
import warnings

import pytest

from warpgate.cli import main
from warpgate.errors import WarpgateError
from warpgate.identity import Identity, load_or_create
from warpgate.net.constants import TCP
from warpgate.node.auto_connect import auto_connect, connect
from warpgate.node.node import Node
from warpgate.node.node_defs import NODE_TEST_CONF
from warpgate.plugin import Plugin
from warpgate.testing import Stage
from warpgate.testing.mosquitto import Mosquitto, find_mosquitto, free_port

BROKER_PASSWORD = "br0ker-pa55word"
TURN_PASSWORD = "turn-pa55word"
PLUGIN_SECRET = "plug1n-secret"


class Dial(Plugin):
    name, transport, phase = "dial", "tcp", "direct"

    async def run(self, reply=None):
        route = await self.bind()
        dest = (self.dest_info["ip"], self.dest_info["port"])
        self.result.set_result(await route.connect(dest, TCP))


class Searched:
    """Collects texts, and looks for secrets in whatever way they may be written."""

    def __init__(self):
        self.texts = []

    def __call__(self, *values):
        for value in values:
            self.texts += [repr(value), str(value)]
            if isinstance(value, BaseException):
                self.texts += traceback.format_exception(value)

    def find(self, secrets):
        text = "\n".join(self.texts)
        return [name for name, written in secrets.items() if any(each in text for each in written)]


def ways(secret):
    """Return the ways in which bytes end up in texts."""
    plain = [base64.b64encode(secret), base64.urlsafe_b64encode(secret), base64.b32encode(secret)]
    texts = [each.decode().rstrip("=") for each in plain]
    return [*texts, texts[2].lower(), secret.hex(), secret.hex().upper(), repr(secret)[2:-1]]


def secrets_of(identity):
    seeds = identity.to_bytes()
    return {"signing key": ways(seeds[:32]), "exchange key": ways(seeds[32:]), "both": ways(seeds)}


def test_the_search_finds_what_there_is():
    identity = Identity.generate()
    for text in (
        repr(identity.to_bytes()),
        identity.to_bytes().hex(),
        base64.b64encode(identity.to_bytes()).decode(),
        f"x{base64.b32encode(identity.to_bytes()[32:]).decode().lower()}y",
    ):
        searched = Searched()
        searched(text)
        assert searched.find(secrets_of(identity))
    searched = Searched()
    searched(identity, identity.node_id)
    assert searched.find(secrets_of(identity)) == []


@pytest.mark.broker
@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
async def test_a_whole_session(tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "asyncio")
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    command = ["mosquitto_passwd", "-b", str(passwords), "user", BROKER_PASSWORD]
    subprocess.run(command, check=True, capture_output=True)
    searched = Searched()
    lines = ["allow_anonymous false", f"password_file {passwords}"]
    with (
        Mosquitto(tmp_path, lines) as broker,
        Stage() as stage,
        warnings.catch_warnings(record=True),
    ):
        stage.install(Dial)

        def conf(folder, password=BROKER_PASSWORD):
            url = broker.url.replace("//", f"//user:{password}@")
            closed = f"mqtt://other:{BROKER_PASSWORD}@127.0.0.1:{free_port()}"
            return {
                **NODE_TEST_CONF,
                "brokers": [url, closed],
                "sig_pipe_no": 2,
                "turn_servers": [f"turn:user:{TURN_PASSWORD}@127.0.0.1:{free_port()}"],
                "plugin_conf": {"dial": {"token": PLUGIN_SECRET}},
                "enable_nickname": True,
                "install_path": str(tmp_path / folder),
            }

        alice = Node(ip="127.0.0.1", conf=conf("alice"))
        bob = Node(ip="127.0.0.1", conf={**conf("bob"), "allow": ["alice"]})
        # One whose password is wrong, and who is refused.
        eve = Node(ip="127.0.0.1", conf=conf("eve", f"{BROKER_PASSWORD}-not"))
        secrets = {
            "broker": [BROKER_PASSWORD],
            "turn": [TURN_PASSWORD],
            "plugin": [PLUGIN_SECRET],
        }
        async with alice, bob, eve:
            for node in (alice, bob, eve):
                for name, written in secrets_of(node.identity).items():
                    secrets[f"{name} {node.node_id}"] = written
            while not all(
                node.rendezvous.mqtt.status()[0].state == "connected" for node in (alice, bob)
            ):
                await asyncio.sleep(0.01)
            searched(await alice.nickname("alice"))
            async with await connect(bob, "alice") as pipe:
                await pipe.send(b"hello")
                searched(pipe, pipe.report, pipe.report.as_dict())
            for caller, dest in ((eve, bob.address()), (eve, "alice"), (bob, "nobody"), (bob, "")):
                try:
                    searched(await auto_connect(caller, dest, 1), caller.last_report)
                except WarpgateError as error:
                    searched(error)
                searched(caller.last_report.error, caller.last_report.as_dict())
            for bad in (
                {"brokers": [f"mqtt:/user:{BROKER_PASSWORD}@h"]},
                {"turn_servers": [f"turn:user:{TURN_PASSWORD}"]},
                {"allow": f"mqtt://user:{BROKER_PASSWORD}@h"},
            ):
                with pytest.raises(WarpgateError) as refused:
                    Node(conf={**NODE_TEST_CONF, **bad})
                searched(str(refused.value), repr(refused.value))
            for node in (alice, bob, eve):
                searched(
                    node,
                    node.conf,
                    node.identity,
                    node.peer_address,
                    node.peer_address.to_text(),
                    node.router,
                    node.trust,
                    node.rendezvous.mqtt,
                    *node.rendezvous.mqtt.status(),
                    *node.rendezvous.mqtt._kept.values(),
                    *node.rendezvous.mqtt._configured.values(),
                    dict(node.stats),
                    *asyncio.all_tasks(),
                )
    for words in (["id"], ["id", "--json"], ["trust"], ["id", "--rotate"]):
        secrets |= secrets_of(load_or_create(tmp_path / "alice"))
        assert main([words[0], "--install-path", str(tmp_path / "alice"), *words[1:]]) == 0
        searched(*capsys.readouterr())
    for path in ("known_names", "sequence"):
        searched((tmp_path / "bob" / path).read_text())
    searched(caplog.text)
    assert len(caplog.records) > 10
    assert searched.find(secrets) == []
