"""``@register`` and ``plugin_registry``."""

from __future__ import annotations

import pytest

from warpgate import Plugin, plugin_registry, register


@pytest.fixture(autouse=True)
def _restored():
    before = list(plugin_registry)
    yield
    plugin_registry[:] = before


@pytest.mark.parametrize("phase", ["direct", "punch", "spray", "relay", None])
def test_register_writes_the_phase_and_appends_the_class(phase):
    class Mine(Plugin):
        pass

    assert register(phase=phase)(Mine) is Mine
    assert vars(Mine)["phase"] == phase
    assert plugin_registry[-1] is Mine


@pytest.mark.parametrize("phase", ["later", "", "Direct", 1, ()])
def test_an_unknown_phase_is_a_value_error_that_names_the_phases(phase):
    before = list(plugin_registry)
    with pytest.raises(ValueError, match="phase") as caught:
        register(phase=phase)
    for known in ("direct", "punch", "spray", "relay", "None"):
        assert known in str(caught.value)
    assert plugin_registry == before


def test_the_phase_may_be_given_by_position():
    @register("relay")
    class Mine(Plugin):
        pass

    assert Mine.phase == "relay"


def test_the_base_class_has_no_phase_of_its_own():
    register("relay")(type("Mine", (Plugin,), {}))
    assert Plugin.phase is None


def test_the_public_registry_is_the_one_that_register_fills():
    from warpgate import registry

    assert plugin_registry is registry.plugin_registry
