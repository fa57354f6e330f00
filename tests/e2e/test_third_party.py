"""A distribution of somebody else's, installed from its wheel, and broken ones beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import (
    HERE,
    CommandError,
    Environment,
    build_wheel,
    connect,
    listening,
    our,
    write_wheel,
)

pytestmark = pytest.mark.timeout(300)

GOOD = """
from warpgate import Plugin, register

@register(phase="direct")
class Strategy(Plugin):
    name = "{name}"
    transport = "tcp"

    async def run(self, reply=None):
        self.result.set_result(None)
"""

# Distribution: (module's source or None, entry point, its value, stage, part of the cause).
BROKEN = {
    "wgx_import_error": (
        "raise RuntimeError('boom')", "wgx_import_error", "wgx_import_error:Strategy", "import", "boom",
    ),
    "wgx_no_name": (
        GOOD.replace('    name = "{name}"\n', ""),
        "wgx_no_name", "wgx_no_name:Strategy", "contract", "has no name",
    ),
    "wgx_not_a_plugin": (
        "class Strategy:\n    name = 'wgx_not_a_plugin'\n    transport = 'tcp'\n",
        "wgx_not_a_plugin", "wgx_not_a_plugin:Strategy", "contract", "not a Plugin subclass",
    ),
    "wgx_missing_module": (
        None, "wgx_missing_module", "wgx_missing_module.absent:Strategy", "import", "wgx_missing_module",
    ),
    "wgx_sync_run": (
        GOOD.format(name="wgx_sync_run").replace("async def run", "def run"),
        "wgx_sync_run", "wgx_sync_run:Strategy", "contract", "run",
    ),
    # Sorted after wgx-thirdparty, so it is this one that is rejected.
    "wgx_zlater": (
        GOOD.format(name="wgx_dial"), "wgx_dial", "wgx_zlater:Strategy", "name", "wgx-thirdparty",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """A fresh environment that holds the core, and what that depends on."""
    made = Environment(tmp_path_factory.mktemp("environment") / "venv")
    try:
        made.install("pluggy")
    except CommandError as error:
        if os.environ.get("CI") == "true":  # there it must work
            raise
        pytest.skip(f"nothing can be installed here: {str(error)[-300:]}")
    made.install(our("warpgate-core"))
    return made


@pytest.fixture(scope="module")
def third_party(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    wheel = build_wheel(HERE / "thirdparty", tmp_path_factory.mktemp("thirdparty"))
    environment.install(wheel)
    return environment


def plugins(environment: Environment, **environ: str) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = json.loads(
        environment.warpgate("plugins", "--json", **environ)
    )
    return found


def test_a_core_alone_says_so(environment: Environment) -> None:
    assert plugins(environment)["strategies"] == []
    assert "No strategy is installed" in environment.warpgate("plugins")
    assert "pip install warpgate-plugin-direct" in environment.warpgate("plugins")
    with listening(environment.python) as peer:  # it starts, too
        facts = connect(peer["address"], environment.python)
    assert not facts["connected"]
    assert "no strategy is installed" in facts["text"]


def test_it_wins_a_connection(third_party: Environment) -> None:
    (strategy,) = plugins(third_party)["strategies"]
    assert strategy["name"] == "wgx_dial"
    assert (strategy["distribution"], strategy["version"]) == ("wgx-thirdparty", "2.5.0")
    with listening(third_party.python) as peer:
        facts = connect(peer["address"], third_party.python)
    assert (facts["connected"], facts["plugin"], facts["echoed"]) == (True, "wgx_dial", True)


def test_one_plugin_beside_another_and_filters(third_party: Environment) -> None:
    third_party.install(our("warpgate-plugin-direct"))

    def names(**environ: str) -> list[str]:
        return [strategy["name"] for strategy in plugins(third_party, **environ)["strategies"]]

    assert names() == ["direct_connect", "reverse_connect", "wgx_dial"]
    assert names(WARPGATE_PLUGINS="wgx_dial,direct_connect") == ["wgx_dial", "direct_connect"]
    assert names(WARPGATE_BLOCK_PLUGINS="direct_connect") == ["reverse_connect", "wgx_dial"]
    assert names(WARPGATE_PLUGINS="") == []
    with pytest.raises(CommandError, match=r"no_such.*wgx_dial"):
        names(WARPGATE_PLUGINS="no_such")


def test_broken_ones_are_reported_and_harm_nothing(
    third_party: Environment, tmp_path: Path
) -> None:
    for name, (source, point, value, _, _) in BROKEN.items():
        files = {} if source is None else {f"{name}.py": source}
        third_party.install(write_wheel(tmp_path, name, files, {point: value}))
    before = {"direct_connect", "reverse_connect", "wgx_dial"}
    found = plugins(third_party)
    assert {strategy["name"] for strategy in found["strategies"]} <= before
    rejected = {failure["distribution"].replace("-", "_"): failure for failure in found["rejected"]}
    assert set(rejected) == set(BROKEN)
    for name, (_, point, _, stage, cause) in BROKEN.items():
        failure = rejected[name]
        assert (failure["entry_point"], failure["stage"]) == (point, stage)
        assert cause in failure["cause"], failure
        assert failure["mend"]
        assert failure["version"] == "1.0"
    text = third_party.warpgate("plugins")
    assert all(name.replace("_", "-") in text.replace("_", "-") for name in BROKEN)
    with listening(third_party.python) as peer:
        facts = connect(peer["address"], third_party.python, plugins=["wgx_dial"])
    assert (facts["connected"], facts["plugin"], facts["echoed"]) == (True, "wgx_dial", True)
