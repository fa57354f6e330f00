"""Which strategies a node has: settings, and the environment that wins over them."""

from __future__ import annotations

import pytest

from warpgate import NODE_TEST_CONF, ConfigError, Node


async def strategies(**conf: object) -> list[str]:
    async with Node(conf={**NODE_TEST_CONF, **conf}) as node:
        loaders = node.traversal.plugin_loaders
        return [name for name, loader in loaders.items() if loader.info().phase]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WARPGATE_PLUGINS", "WARPGATE_BLOCK_PLUGINS"):
        monkeypatch.delenv(name, raising=False)


async def test_all_that_are_installed() -> None:
    found = await strategies()
    assert found[:2] == ["direct_connect", "reverse_connect"]


async def test_settings() -> None:
    wanted = ["reverse_connect", "direct_connect"]
    assert await strategies(plugins=wanted) == wanted
    assert await strategies(plugins=[]) == []
    assert "direct_connect" not in await strategies(block_plugins=["direct_connect"])


async def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARPGATE_PLUGINS", "reverse_connect")
    assert await strategies(plugins=["direct_connect"]) == ["reverse_connect"]
    monkeypatch.setenv("WARPGATE_BLOCK_PLUGINS", "reverse_connect")
    assert await strategies() == []


async def test_an_unknown_name_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"direct_conect.*direct_connect"):
        await strategies(plugins=["direct_conect"])
    monkeypatch.setenv("WARPGATE_BLOCK_PLUGINS", "nonsense")
    with pytest.raises(ConfigError, match=r"nonsense.*direct_connect"):
        await strategies()
