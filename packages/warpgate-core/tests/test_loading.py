"""Discovery, isolation, names, filters, drop-ins and registered classes."""

from __future__ import annotations

import asyncio
import logging
import sys
import textwrap
from pathlib import Path

import pytest

from warpgate import Plugin, hookimpl, plugin_registry, register
from warpgate.errors import (
    ConfigError,
    PluginConflictError,
    PluginDefinitionError,
    PluginIncompatibleError,
    PluginLoadError,
)
from warpgate.loading import PluginFailure, discovery, dropins, load, load_report

DISTS = Path(__file__).parent / "plugin_dists"


class Site:
    """A set of folders that stand for what is installed."""

    def __init__(self, monkeypatch, tmp_path):
        self._monkeypatch = monkeypatch
        self._tmp_path = tmp_path
        self.path = []
        monkeypatch.setattr(discovery, "search_path", lambda: list(self.path))

    def use(self, *folders):
        """Install ready-made distributions of ``plugin_dists``."""
        for folder in folders:
            self._add(DISTS / folder)

    def make(self, name, entry_points, *, version="1.0", requires=(), **modules):
        """Install a distribution made of source text."""
        folder = self._tmp_path / f"{name}-{version}-{len(self.path)}"
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
        lines += [f"Requires-Dist: {line}" for line in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        points = [f"{key} = {value}" for key, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[warpgate.strategies]", *points]))
        for module, text in modules.items():
            (folder / f"{module}.py").write_text(textwrap.dedent(text))
        self._add(folder)
        return folder

    def _add(self, folder):
        self.path.append(str(folder))
        self._monkeypatch.syspath_prepend(str(folder))
        discovery.catalog.cache_clear()


def forget():
    discovery.catalog.cache_clear()
    for name in list(sys.modules):
        if name.startswith(("wgx_", dropins.SYNTHETIC)):
            del sys.modules[name]


@pytest.fixture
def site(monkeypatch, tmp_path):
    registered = list(plugin_registry)
    plugin_registry.clear()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget()
    yield Site(monkeypatch, tmp_path)
    forget()
    plugin_registry[:] = registered


def strategy(name, cls="Strategy", phase='"direct"', extra=""):
    return (
        "from warpgate import Plugin, register, hookimpl\n\n\n"
        f"@register(phase={phase})\n"
        f"class {cls}(Plugin):\n"
        f"    name = {name!r}\n"
        '    transport = "tcp"\n'
        f"    {extra}\n"
        "    async def run(self, reply=None):\n"
        "        self.result.set_result(None)\n\n\n"
    )


def names(report):
    return [item.name for item in report.strategies]


def only(report) -> PluginFailure:
    assert len(report.rejected) == 1, report.rejected
    return report.rejected[0]


# What is found.


def test_a_class_entry_point_is_loaded_with_its_provenance(site):
    site.use("good")
    (found,) = load({}, {}).strategies
    assert (found.name, found.distribution, found.version) == ("wgx_good", "wgx-good", "1.0")
    assert found.entry_point == "wgx_good"
    assert (found.phase, found.transport) == ("direct", "tcp")
    assert found.cls is sys.modules["wgx_good"].Good


def test_without_any_distribution_nothing_is_found_and_nothing_is_wrong(site):
    report = load({}, {})
    assert (report.strategies, report.objects, report.rejected) == ([], [], [])


def test_entry_points_are_sorted_by_distribution_then_name(site):
    module = strategy("b", "B") + strategy("a", "A")
    site.make("wgx-two", {"b": "wgx_two:B", "a": "wgx_two:A"}, wgx_two=module)
    site.make("wgx-one", {"z": "wgx_one:Z"}, wgx_one=strategy("z", "Z"))
    assert names(load({}, {})) == ["z", "a", "b"]


def test_the_installed_environment_is_what_is_searched(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(DISTS / "good"))
    discovery.catalog.cache_clear()
    registered = list(plugin_registry)
    try:
        assert "wgx_good" in names(load_report())
    finally:
        forget()
        plugin_registry[:] = registered


def test_a_distribution_hidden_by_an_earlier_one_does_not_count(site, monkeypatch):
    site.make("wgx-hidden", {"new": "wgx_new:S"}, version="2.0", wgx_new=strategy("new", "S"))
    site.make("wgx-hidden", {"old": "wgx_old:S"}, version="1.0", wgx_old=strategy("old", "S"))
    assert names(load({}, {})) == ["new"]


def test_a_distribution_hidden_by_one_without_strategies_does_not_count(site):
    folder = site.make("wgx-hidden", {}, version="2.0")
    (folder / "wgx_hidden-2.0.dist-info/entry_points.txt").unlink()
    site.make("wgx-hidden", {"old": "wgx_old:S"}, version="1.0", wgx_old=strategy("old", "S"))
    assert names(load({}, {})) == []


def test_a_module_brings_its_classes_and_its_hooks(site):
    text = strategy("a", "A") + strategy("b", "B")
    text += "@hookimpl\ndef warpgate_event(node, event):\n    pass\n"
    site.make("wgx-module", {"wgx_mod": "wgx_module"}, wgx_module=text)
    report = load({}, {})
    assert names(report) == ["a", "b"]
    (loaded,) = report.objects
    assert loaded.object is sys.modules["wgx_module"]
    assert (loaded.distribution, loaded.entry_point) == ("wgx-module", "wgx_mod")


def test_a_module_brings_the_classes_of_its_package_too(site):
    folder = site.make("wgx-package", {"wgx_package": "wgx_package"})
    (folder / "wgx_package").mkdir()
    (folder / "wgx_package/__init__.py").write_text("from . import inner\n")
    (folder / "wgx_package/inner.py").write_text(strategy("inner"))
    assert names(load({}, {})) == ["inner"]


def test_a_module_brings_what_it_imports_from_its_siblings(site):
    folder = site.make("wgx-package", {"mine": "wgx_package.offer"})
    (folder / "wgx_package").mkdir()
    (folder / "wgx_package/offer.py").write_text("from .inner import Strategy\n")
    (folder / "wgx_package/inner.py").write_text(strategy("inner"))
    (found,) = load({}, {}).strategies
    assert (found.name, found.distribution) == ("inner", "wgx-package")


def test_a_class_that_a_module_merely_imports_from_elsewhere_is_not_its_own(site):
    site.make("wgx-a", {"wgx_a": "wgx_a"}, wgx_a="from wgx_z import Z\n" + strategy("mine"))
    site.make("wgx-z", {"z": "wgx_z:Z"}, wgx_z=strategy("z", "Z"))
    owners = {item.name: item.distribution for item in load({}, {}).strategies}
    assert owners == {"mine": "wgx-a", "z": "wgx-z"}


def test_an_instance_brings_its_hooks_and_goes_on_the_plugin_manager(site):
    text = """
        from warpgate import hookimpl

        class Watcher:
            @hookimpl
            def warpgate_event(self, event):
                pass

        watcher = Watcher()
    """
    site.make("wgx-instance", {"watcher": "wgx_instance:watcher"}, wgx_instance=text)
    report = load({}, {})
    assert report.rejected == []
    assert [loaded.object for loaded in report.objects] == [sys.modules["wgx_instance"].watcher]


def test_an_instance_brings_registered_classes(site):
    text = strategy("held", "Held") + "class Box:\n    strategy = Held\n\nbox = Box()\n"
    site.make("wgx-box", {"box": "wgx_box:box"}, wgx_box=text)
    report = load({}, {})
    assert (names(report), report.objects, report.rejected) == (["held"], [], [])


def test_a_class_is_no_object_for_the_plugin_manager(site):
    site.use("good")
    assert load({}, {}).objects == []


def test_each_entry_point_is_imported_once_per_process(site):
    text = "import builtins\nbuiltins.wgx_count = getattr(builtins, 'wgx_count', 0) + 1\n"
    site.make("wgx-count", {"counted": "wgx_count:Strategy"}, wgx_count=text + strategy("counted"))
    import builtins

    try:
        first, second = load({}, {}), load({}, {})
        del sys.modules["wgx_count"]
        third = load_report()
        assert builtins.wgx_count == 1
        assert first.strategies == second.strategies == third.strategies
        load_report(refresh=True)
        assert builtins.wgx_count == 2
    finally:
        del builtins.wgx_count


def test_the_lists_of_a_report_are_its_own(site):
    site.use("good", "no_name")
    load_report().strategies.clear()
    load_report().rejected.clear()
    assert (len(load_report().strategies), len(load_report().rejected)) == (1, 1)


def test_refresh_finds_what_was_installed_meanwhile(site, monkeypatch):
    assert load_report().strategies == []
    site.path.append(str(DISTS / "good"))
    monkeypatch.syspath_prepend(str(DISTS / "good"))
    assert load_report().strategies == []
    assert names(load_report(refresh=True)) == ["wgx_good"]


# What is rejected, and harms nothing.

BROKEN = [
    ("import_error", "import", "wgx_no_such_dependency", "install the distribution that holds"),
    ("no_name", "contract", "has no name", "set name"),
    ("not_a_plugin", "contract", "is not a Plugin subclass", "derive it from warpgate.Plugin"),
    (
        "missing_module",
        "import",
        "No module named 'wgx_missing_module'",
        "does not hold the module",
    ),
    ("sync_run", "contract", "run is no coroutine function", "async def run(self, reply=None)"),
    ("clash", "name", "taken by wgx-good 1.0", "rename"),
    ("reserved", "name", "'turn' belongs to warpgate-plugin-turn", "rename"),
    ("wrong_hook_name", "hooks", "no hook 'warpgate_evnt'", "did you mean warpgate_event?"),
    ("wrong_hook_argument", "hooks", "no argument 'evnt'", "did you mean 'event'?"),
    ("async_hook", "hooks", "never awaited", "write def warpgate_event"),
    ("other_core", "api", "requires warpgate-core>=999", "pip install"),
    ("other_api", "api", "version 2 of the plugin interface", "update warpgate-core"),
    ("exits", "import", "SystemExit: no such platform", "wgx-exits"),
    ("no_attribute", "import", "no attribute 'Strategy'", "wgx-no-attribute"),
]


@pytest.mark.parametrize(("folder", "stage", "cause", "mend"), BROKEN, ids=[b[0] for b in BROKEN])
def test_a_broken_distribution_is_reported_and_harms_nothing(site, folder, stage, cause, mend):
    site.use("good", folder)
    report = load({}, {})
    assert names(report) == ["wgx_good"]
    assert report.strategies[0].distribution == "wgx-good"
    assert report.objects == []
    failure = only(report)
    (info,) = (DISTS / folder).glob("*.dist-info")
    assert failure.distribution.replace("-", "_") == info.name.partition("-")[0]
    assert (failure.version, failure.stage) == ("1.0", stage)
    line = str(failure)
    assert "\n" not in line
    for part in (failure.distribution, failure.entry_point, stage, cause, mend):
        assert part in line


def test_all_broken_distributions_at_once(site):
    site.use("good", *[folder for folder, *_ in BROKEN])
    report = load({}, {})
    assert names(report) == ["wgx_good"]
    assert len(report.rejected) == len(BROKEN)
    table = str(report)
    assert all(str(failure) in table for failure in report.rejected)


def test_what_another_core_is_required_for_is_not_imported(site):
    site.use("other_core")
    load({}, {})
    assert "wgx_other_core" not in sys.modules


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        ("warpgate-core>=0.0.1", None),
        ("Warpgate_Core >= 0.0.1", None),
        ("warpgate-core>=999 ; extra == 'x'", None),
        ("warpgate-core", None),
        ("warpgate-core-extras>=999", None),
        ("warpgate-core<0.0.1", "api"),
        ("warpgate-core>>1", "api"),
    ],
)
def test_the_requirement_on_the_core(site, line, stage):
    site.make("wgx-req", {"s": "wgx_req:Strategy"}, requires=[line], wgx_req=strategy("s"))
    report = load({}, {})
    assert [failure.stage for failure in report.rejected] == ([stage] if stage else [])
    assert names(report) == ([] if stage else ["s"])


def test_a_development_version_of_the_core_fulfils_a_requirement(site, monkeypatch):
    monkeypatch.setattr("warpgate.__version__", "2.0.dev1")
    site.make(
        "wgx-req", {"s": "wgx_req:S"}, requires=["warpgate-core>=1"], wgx_req=strategy("s", "S")
    )
    assert names(load({}, {})) == ["s"]


@pytest.mark.parametrize(("api", "rejected"), [("1", 0), ("0", 1), ("2", 1), ("'text'", 0)])
def test_the_version_of_the_interface_on_a_module(site, api, rejected):
    site.make("wgx-api", {"m": "wgx_api"}, wgx_api=f"api = {api}\n" + strategy("s"))
    report = load({}, {})
    assert [failure.stage for failure in report.rejected] == ["api"] * rejected
    assert len(report.strategies) == 1 - rejected


@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "asyncio.CancelledError"])
def test_an_interruption_passes_through_and_is_not_remembered(site, kind):
    text = f"import asyncio, wgx_switch\nif wgx_switch.on:\n    raise {kind}\n"
    site.make(
        "wgx-int", {"s": "wgx_int:Strategy"}, wgx_int=text + strategy("s"), wgx_switch="on = True"
    )
    with pytest.raises((KeyboardInterrupt, asyncio.CancelledError)):
        load({}, {})
    sys.modules["wgx_switch"].on = False
    assert names(load({}, {})) == ["s"]


def test_one_bad_class_does_not_take_the_others_of_its_module_along(site):
    text = strategy("good", "A") + strategy("bad name", "B")
    site.make("wgx-mixed", {"m": "wgx_mixed"}, wgx_mixed=text)
    report = load({}, {})
    assert names(report) == ["good"]
    assert "'bad name'" in str(only(report))


def test_a_module_with_wrong_hooks_is_rejected_whole(site):
    text = strategy("good", "A") + "@hookimpl\ndef warpgate_evnt(event):\n    pass\n"
    site.make("wgx-half", {"m": "wgx_half"}, wgx_half=text)
    report = load({}, {})
    assert (names(report), report.objects) == ([], [])
    assert only(report).stage == "hooks"


def test_hooks_on_a_class_are_rejected(site):
    text = "    @hookimpl\n    def warpgate_event(self, event):\n        pass\n"
    site.make("wgx-hc", {"s": "wgx_hc:Strategy"}, wgx_hc=strategy("s").rstrip() + "\n\n" + text)
    assert "entry point of its own" in str(only(load({}, {})))


def test_a_class_must_bear_its_entry_points_name(site):
    site.make("wgx-other", {"entry": "wgx_other:Strategy"}, wgx_other=strategy("actual"))
    failure = only(load({}, {}))
    assert failure.stage == "contract"
    assert "'entry'" in failure.cause
    assert "'actual'" in failure.cause


@pytest.mark.parametrize(
    ("value", "text", "cause"),
    [
        ("wgx_odd", "", "neither registered strategies nor hooks"),
        ("wgx_odd:thing", "thing = 5", "neither registered strategies nor hooks"),
        ("wgx_odd:thing", "def thing(): pass", "function thing"),
        (
            "wgx_odd:thing",
            strategy("thing") + "thing = Strategy.__new__(Strategy)",
            "let it name the class",
        ),
        ("no module:x", "", "Invalid object reference"),
    ],
)
def test_an_entry_point_that_is_no_plugin(site, value, text, cause):
    site.use("good")
    site.make("wgx-odd", {"thing": value}, wgx_odd=text)
    report = load({}, {})
    assert "wgx_good" in names(report)
    assert cause in str(report.rejected[0])


@pytest.mark.parametrize(
    "text",
    [
        "class Bad(Exception):\n    def __str__(self):\n        raise RuntimeError\nraise Bad",
        "raise ExceptionGroup('several', [ValueError('one'), TypeError('two')])",
        "raise ValueError('two\\nlines')",
        "1 / 0",
        "def (",
    ],
)
def test_whatever_an_import_raises_is_one_line(site, text):
    site.use("good")
    site.make("wgx-raise", {"thing": "wgx_raise"}, wgx_raise=text)
    report = load({}, {})
    assert names(report) == ["wgx_good"]
    assert only(report).stage == "import"
    assert "\n" not in str(only(report))


def test_attributes_that_raise_are_a_breach_of_contract(site):
    text = """
        from warpgate import Plugin, register

        class Meta(type):
            @property
            def name(cls):
                raise RuntimeError("computed")

        @register(phase="direct")
        class Strategy(Plugin, metaclass=Meta):
            transport = "tcp"

            async def run(self, reply=None):
                pass
    """
    site.use("good")
    site.make("wgx-meta", {"s": "wgx_meta:Strategy"}, wgx_meta=text)
    report = load({}, {})
    assert names(report) == ["wgx_good"]
    assert only(report).stage == "contract"


def test_broken_metadata_hides_no_other_distribution(site):
    site.use("good")
    folder = site.make("wgx-metadata", {"s": "wgx_metadata:S"})
    (info,) = folder.glob("*.dist-info")
    (info / "entry_points.txt").write_text("[warpgate.strategies]\nno equals sign\n")
    report = load_report(refresh=True)
    assert names(report) == ["wgx_good"]
    assert "wgx-metadata" in str(only(report))


def test_failures_are_logged(site, caplog):
    site.use("no_name")
    with caplog.at_level(logging.WARNING, "warpgate.loading"):
        report = load({}, {})
    assert str(only(report)) in caplog.text


def test_strict_raises_all_failures_as_a_group(site):
    site.use("good", "exits", "no_name", "reserved", "other_api", "wrong_hook_name")
    with pytest.raises(ExceptionGroup) as caught:
        load({}, {"WARPGATE_STRICT": "1"})
    kinds = {type(error) for error in caught.value.exceptions}
    assert kinds == {
        PluginLoadError,
        PluginDefinitionError,
        PluginConflictError,
        PluginIncompatibleError,
    }
    causes = [error.__cause__ for error in caught.value.exceptions]
    assert any(isinstance(cause, SystemExit) for cause in causes)
    assert len(load({}, {"WARPGATE_STRICT": "0"}).rejected) == 5


def test_strict_with_nothing_rejected_returns_the_report(site):
    site.use("good")
    assert names(load({}, {"WARPGATE_STRICT": "1"})) == ["wgx_good"]


# Names.


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("direct_connect", "warpgate-plugin-direct"),
        ("reverse_connect", "warpgate-plugin-direct"),
        ("tcp_punch", "warpgate-plugin-punch"),
        ("udp_punch", "warpgate-plugin-punch"),
        ("random_probe", "warpgate-plugin-punch"),
        ("turn", "warpgate-plugin-turn"),
        ("get_addr", "warpgate-core"),
        ("return_addr", "warpgate-core"),
        ("fan_out", "warpgate-core"),
    ],
)
def test_reserved_names_belong_to_their_distributions(site, name, owner):
    site.make("aaa-impostor", {name: "wgx_imp:Strategy"}, wgx_imp=strategy(name))
    site.make(owner.replace("-", "_"), {name: "wgx_owner:Strategy"}, wgx_owner=strategy(name))
    report = load({}, {})
    assert [(s.name, s.distribution) for s in report.strategies] == [
        (name, owner.replace("-", "_"))
    ]
    line = str(only(report))
    assert owner in line
    assert "aaa-impostor" in line


def test_of_two_claims_the_first_by_sort_order_wins(site):
    site.make("wgx-b", {"same": "wgx_b:Strategy"}, wgx_b=strategy("same"))
    site.make("wgx-a", {"same": "wgx_a:Strategy"}, wgx_a=strategy("same"))
    report = load({}, {})
    assert [s.distribution for s in report.strategies] == ["wgx-a"]
    assert "wgx-a 1.0" in only(report).cause
    assert "wgx-b 1.0" in only(report).cause


def test_a_class_with_two_entry_points_of_its_distribution_is_no_clash(site):
    site.make("wgx-c", {"aaa": "wgx_c", "same": "wgx_c:Strategy"}, wgx_c=strategy("same"))
    report = load({}, {})
    assert (names(report), report.rejected) == (["same"], [])


# Filters.


def five(site):
    text = "".join(strategy(name, name.title()) for name in "abc")
    site.make(
        "wgx-abc",
        {n: f"wgx_abc_{n}:{n.title()}" for n in "abc"},
        **{f"wgx_abc_{n}": strategy(n, n.title()) for n in "abc"},
    )
    site.make(
        "wgx-mod",
        {"mod": "wgx_mod"},
        wgx_mod=text.replace("'a'", "'x'").replace("'b'", "'y'").replace("'c'", "'z'"),
    )


def test_the_allow_list_orders_and_keeps_others_from_being_imported(site):
    five(site)
    assert names(load({"plugins": ["c", "a"]}, {})) == ["c", "a"]
    assert "wgx_abc_b" not in sys.modules
    assert "wgx_mod" not in sys.modules


def test_an_entry_points_name_allows_all_that_it_brings(site):
    five(site)
    assert names(load({"plugins": ["mod", "b"]}, {})) == ["x", "y", "z", "b"]


def test_a_strategys_own_name_orders_before_its_entry_points(site):
    five(site)
    assert names(load({"plugins": ["z", "b", "mod"]}, {})) == ["z", "b", "x", "y"]


def test_the_block_list_acts_before_import_and_after(site):
    five(site)
    assert names(load({"block_plugins": ["a", "y"]}, {})) == ["b", "c", "x", "z"]
    assert "wgx_abc_a" not in sys.modules


def test_a_blocked_entry_point_brings_nothing_even_when_imported_before(site):
    five(site)
    assert "x" in names(load({}, {}))
    assert names(load({"block_plugins": ["mod"]}, {})) == ["a", "b", "c"]


def test_the_block_list_wins_over_the_allow_list(site):
    five(site)
    assert names(load({"plugins": ["a", "b"], "block_plugins": ["a"]}, {})) == ["b"]


def test_a_name_that_was_filtered_out_is_free(site):
    site.make("wgx-a", {"one": "wgx_a"}, wgx_a=strategy("same"))
    site.make("wgx-b", {"two": "wgx_b"}, wgx_b=strategy("same"))
    report = load({"block_plugins": ["one"]}, {})
    assert [s.distribution for s in report.strategies] == ["wgx-b"]
    assert report.rejected == []


def test_the_environment_wins(site):
    five(site)
    environ = {"WARPGATE_PLUGINS": " b , a,", "WARPGATE_BLOCK_PLUGINS": ""}
    assert names(load({"plugins": ["c"], "block_plugins": ["b"]}, environ)) == ["b", "a"]
    environ = {"WARPGATE_BLOCK_PLUGINS": "mod,c"}
    assert names(load({"block_plugins": ["a"]}, environ)) == ["a", "b"]


def test_set_but_empty_means_none(site):
    five(site)
    assert names(load({}, {"WARPGATE_PLUGINS": ""})) == []
    assert names(load({"plugins": []}, {})) == []
    assert not any(name.startswith("wgx_") for name in sys.modules)


@pytest.mark.parametrize("key", ["plugins", "block_plugins"])
def test_an_unknown_name_is_refused_with_the_known_ones(site, key):
    five(site)
    with pytest.raises(ConfigError) as caught:
        load({key: ["modd"]}, {})
    text = str(caught.value)
    assert text.startswith(f"{key}: ")
    assert "did you mean 'mod'?" in text
    for known in ("a", "b", "c", "mod", "get_addr"):
        assert known in text.partition("(known: ")[2]


def test_an_unknown_name_in_the_environment_names_the_variable(site):
    with pytest.raises(ConfigError, match=r"^WARPGATE_PLUGINS: .*'nope'"):
        load({}, {"WARPGATE_PLUGINS": "nope"})


def test_a_known_strategy_that_is_not_installed_says_what_to_install(site):
    with pytest.raises(ConfigError, match="pip install warpgate-plugin-turn"):
        load({"plugins": ["turn"]}, {})


def test_blocking_a_reserved_strategy_that_is_not_installed_is_harmless(site):
    five(site)
    everything = names(load({}, {}))
    for name in ("turn", "tcp_punch", "direct_connect"):
        assert names(load({"block_plugins": [name]}, {})) == everything
        assert names(load({}, {"WARPGATE_BLOCK_PLUGINS": name})) == everything


def test_an_unknown_name_with_rejections_shows_them(site):
    site.use("no_name")
    with pytest.raises(ConfigError, match="wgx-no-name"):
        load({"plugins": ["hoped_for", "wgx_no_name"]}, {})


def test_a_rejected_entry_points_name_is_known(site):
    site.use("good", "sync_run")
    report = load({"plugins": ["wgx_good", "wgx_sync_run"]}, {})
    assert names(report) == ["wgx_good"]
    assert only(report).distribution == "wgx-sync-run"


def test_auxiliaries_need_no_place_on_the_allow_list_and_come_last(site):
    text = strategy("aide", "Aide", phase=None) + strategy("x", "X") + strategy("y", "Y")
    site.make("wgx-aux", {"m": "wgx_aux"}, wgx_aux=text)
    assert names(load({}, {})) == ["x", "y", "aide"]
    site.make("wgx-more", {"x2": "wgx_more:X2"}, wgx_more=strategy("x2", "X2"))
    assert names(load({"plugins": ["x2", "m"], "block_plugins": ["x"]}, {})) == [
        "x2",
        "y",
        "aide",
    ]
    assert names(load({"block_plugins": ["aide"]}, {})) == ["x", "y", "x2"]


def test_an_auxiliary_that_is_not_listed_is_kept_and_may_be_blocked(site):
    site.use("good")
    register(phase=None)(make_class("by_code"))
    assert names(load({"plugins": ["wgx_good"]}, {})) == ["wgx_good", "by_code"]
    conf = {"plugins": ["wgx_good"], "block_plugins": ["by_code"]}
    assert names(load(conf, {})) == ["wgx_good"]


def test_the_cores_auxiliaries_may_be_blocked_and_the_report_says_so(site):
    assert load({"block_plugins": ["fan_out"]}, {}).blocked == {"fan_out"}
    assert load({"plugins": ["get_addr"]}, {}).strategies == []


def test_hooks_follow_the_filters(site):
    hooks = "from warpgate import hookimpl\n@hookimpl\ndef warpgate_event(event):\n    pass\n"
    site.make("wgx-hooks", {"watch": "wgx_hooks"}, wgx_hooks=hooks)
    site.use("good")
    assert len(load({}, {}).objects) == 1
    assert load({"plugins": ["wgx_good"]}, {}).objects == []
    assert load({"block_plugins": ["watch"]}, {}).objects == []
    assert len(load({"plugins": ["wgx_good", "watch"]}, {}).objects) == 1


def test_hooks_come_along_with_a_strategy_that_is_kept(site, tmp_path):
    text = strategy("s") + "@hookimpl\ndef warpgate_event(event):\n    pass\n"
    conf = {"plugin_dirs": [drop(tmp_path / "plugins", {"f/main.py": text})]}
    assert len(load({**conf, "plugins": ["s"]}, {}).objects) == 1
    assert len(load({**conf, "plugins": ["f"]}, {}).objects) == 1
    assert load({**conf, "plugins": []}, {}).objects == []


# Drop-ins.


def drop(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_plugin_dirs_hold_folders_and_files(site, tmp_path):
    folder = drop(
        tmp_path / "plugins",
        {
            "one/main.py": "from .proto import NAME\n" + strategy("one").replace("'one'", "NAME"),
            "one/proto.py": "NAME = 'one'\n",
            "two.py": strategy("two"),
            "_private.py": "raise RuntimeError",
            ".hidden/main.py": "raise RuntimeError",
            "empty/readme.txt": "",
        },
    )
    report = load({"plugin_dirs": [folder]}, {})
    assert (names(report), report.rejected) == (["one", "two"], [])
    assert report.strategies[0].distribution == "drop-in"
    assert report.strategies[0].entry_point == str(folder / "one" / "main.py")
    assert str(folder) not in sys.path


def test_two_nodes_with_one_plugin_dir_share_its_modules(site, tmp_path):
    folder = drop(tmp_path / "plugins", {"s.py": strategy("s")})
    first = load({"plugin_dirs": [str(folder)]}, {})
    second = load({"plugin_dirs": [str(folder)]}, {})
    assert first.strategies[0].cls is second.strategies[0].cls
    assert load({}, {}).strategies == []


def test_two_folders_with_the_same_names_stay_apart(site, tmp_path):
    a = drop(tmp_path / "a", {"s/main.py": strategy("sa")})
    b = drop(tmp_path / "b", {"s/main.py": strategy("sb")})
    assert names(load({"plugin_dirs": [a, b]}, {})) == ["sa", "sb"]


def test_a_broken_drop_in_is_reported_and_harms_nothing(site, tmp_path):
    folder = drop(
        tmp_path / "plugins", {"bad/main.py": "raise SystemExit(3)", "s.py": strategy("s")}
    )
    report = load({"plugin_dirs": [folder]}, {})
    assert names(report) == ["s"]
    failure = only(report)
    assert (failure.distribution, failure.stage) == ("drop-in", "import")
    assert str(folder / "bad" / "main.py") in str(failure)


def test_a_drop_in_may_be_blocked_by_its_own_name_and_is_then_not_imported(site, tmp_path):
    folder = drop(
        tmp_path / "plugins", {"bad/main.py": "raise SystemExit(3)", "s.py": strategy("s")}
    )
    report = load({"plugin_dirs": [folder], "block_plugins": ["bad"]}, {})
    assert (names(report), report.rejected) == (["s"], [])


def test_the_allow_list_knows_drop_ins_by_both_names(site, tmp_path):
    folder = drop(tmp_path / "plugins", {"f/main.py": strategy("s"), "g/main.py": strategy("t")})
    conf = {"plugin_dirs": [folder]}
    assert names(load({**conf, "plugins": ["t", "f"]}, {})) == ["t", "s"]
    assert names(load({**conf, "plugins": ["s"]}, {})) == ["s"]


def test_entry_points_come_before_drop_ins(site, tmp_path):
    site.use("good")
    folder = drop(tmp_path / "plugins", {"s.py": strategy("wgx_good")})
    report = load({"plugin_dirs": [folder]}, {})
    assert [s.distribution for s in report.strategies] == ["wgx-good"]
    assert "drop-in" in only(report).cause


def test_a_plugin_dir_that_is_none_is_refused(site, tmp_path):
    with pytest.raises(ConfigError, match=r"plugin_dirs.*no folder"):
        load({"plugin_dirs": [tmp_path / "nowhere"]}, {})


def test_the_folder_in_the_package_is_searched(site, tmp_path, monkeypatch):
    import warpgate.traversal.plugins as built_in

    folder = drop(
        tmp_path / "plugins",
        {"seed_example/main.py": strategy("direct_tcp"), "loose.py": "raise RuntimeError"},
    )
    monkeypatch.setattr(built_in, "__path__", [str(folder)])
    try:
        report = load({}, {})
    finally:
        for name in list(sys.modules):
            if name.startswith("warpgate.traversal.plugins."):
                del sys.modules[name]
    assert (names(report), report.rejected) == (["direct_tcp"], [])
    assert report.strategies[0].cls.__module__ == "warpgate.traversal.plugins.seed_example.main"


# Classes that code registered.


def make_class(name, run=True):
    class Registered(Plugin):
        transport = "udp"

    async def resolve(self, reply=None):
        self.result.set_result(None)

    Registered.name = name
    if run:
        Registered.run = resolve
    return Registered


def test_classes_registered_by_code_are_installed_last(site):
    site.use("good")
    cls = register(phase="punch")(make_class("by_code"))
    report = load({}, {})
    assert names(report) == ["wgx_good", "by_code"]
    found = report.strategies[1]
    assert (found.cls, found.distribution, found.version) == (cls, "registered code", "")
    assert found.entry_point.endswith("make_class.<locals>.Registered")


def test_of_a_class_that_a_reload_registered_again_the_last_counts(site):
    register(phase="punch")(make_class("again"))
    last = register(phase="punch")(make_class("again"))
    register(phase="punch")(make_class("other"))
    report = load({}, {})
    assert (names(report), report.rejected) == (["again", "other"], [])
    assert report.strategies[0].cls is last


def test_a_registered_class_can_not_take_a_reserved_or_a_taken_name(site):
    site.use("good")
    register(phase="punch")(make_class("turn"))
    register(phase="punch")(make_class("wgx_good"))
    report = load({}, {})
    assert names(report) == ["wgx_good"]
    assert {failure.stage for failure in report.rejected} == {"name"}
    assert len(report.rejected) == 2


def test_a_registered_class_is_checked(site):
    register(phase="punch")(make_class("no_run", run=False))
    failure = only(load({}, {}))
    assert (failure.distribution, failure.stage) == ("registered code", "contract")


def test_registered_classes_follow_the_filters(site):
    register(phase="punch")(make_class("by_code"))
    assert names(load({"plugins": []}, {})) == []
    assert names(load({"plugins": ["by_code"]}, {})) == ["by_code"]
    assert names(load({"block_plugins": ["by_code"]}, {})) == []


def test_a_class_of_a_module_that_failed_midway_is_not_registered_code(site):
    text = strategy("half") + "raise RuntimeError('after the class')\n"
    site.make("wgx-half", {"half": "wgx_half:Strategy"}, wgx_half=text)
    report = load({}, {})
    assert [cls.name for cls in plugin_registry] == ["half"]
    assert report.strategies == []
    assert only(report).stage == "import"


def test_the_cores_own_auxiliaries_are_not_loaded_here(site):
    cls = make_class("get_addr")
    cls.__module__ = "warpgate.traversal.auxiliary.get_addr"
    register(phase=None)(cls)
    report = load({}, {})
    assert (report.strategies, report.rejected) == ([], [])


# warpgate_register_strategies.


GENERATOR = """
from warpgate import Plugin, hookimpl

def make(name):
    async def run(self, reply=None):
        self.result.set_result(None)
    return type("Made", (Plugin,), {"name": name, "transport": "tcp", "run": run})

@hookimpl
def warpgate_register_strategies(register):
    for name in NAMES:
        register(make(name), phase="direct")
"""


def generator(names):
    return GENERATOR.replace("NAMES", repr(names))


def test_the_hook_registers_generated_strategies(site):
    site.make("wgx-gen", {"gen": "wgx_gen"}, wgx_gen=generator(["g1", "g2"]))
    report = load({}, {})
    assert (names(report), report.rejected) == (["g1", "g2"], [])
    found = report.strategies[0]
    assert (found.distribution, found.entry_point, found.phase) == ("wgx-gen", "gen", "direct")


def test_generated_strategies_follow_filters_and_names(site):
    site.make("wgx-gen", {"gen": "wgx_gen"}, wgx_gen=generator(["turn", "g1", "g2"]))
    report = load({"block_plugins": ["g1"]}, {})
    assert names(report) == ["g2"]
    assert "warpgate-plugin-turn" in str(only(report))
    assert names(load({"plugins": ["gen"]}, {})) == ["g1", "g2"]


def test_a_raising_implementation_is_reported_and_keeps_what_it_had_registered(site):
    site.use("good")
    site.make("wgx-gen", {"gen": "wgx_gen"}, wgx_gen=generator(["g1", "no good", "g2"]))
    report = load({}, {})
    assert names(report) == ["wgx_good", "g1"]
    assert only(report).stage == "hooks"
    assert "'no good'" in str(only(report))


def test_the_hook_refuses_an_unknown_phase(site):
    text = generator(["g"]).replace('"direct")', '"later")')
    site.make("wgx-gen", {"gen": "wgx_gen"}, wgx_gen=text)
    assert "direct, punch, spray, relay" in str(only(load({}, {})))


def test_hookimpl_is_the_public_name_of_the_marker():
    from warpgate import hookspecs

    assert hookimpl is hookspecs.hookimpl
