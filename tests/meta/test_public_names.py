"""``import warpgate``: its names, all of them and no others, and that they load lazily."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from types import ModuleType

import pytest

import warpgate
from repository import CORE
from warpgate import errors

PUBLIC = """
    AddressError AllocationExpired AllocationRefused AttemptOutcome AttemptSkipped BadSignature ConMsg
    ConfigError DeltaType EXT_BIND IP4 IP6 Interface InvalidAddressError KeyChangedError LOOPBACK_BIND
    LocalProtocolError MessageTooLarge NATType NIC_BIND NODE_CONF NODE_TEST_CONF NoPathError
    NoSharedFamilyError Node PLUGIN_API PeerAddress Pipe PipeClosed Plugin PluginConflictError
    PluginDefinitionError PluginError PluginIncompatibleError PluginLoadError ProtoMsg ProtocolError
    RelayError RemoteProtocolError Report Route SUB_ALL SignalTransport SignallingError SkipReason
    StaleMessage TCP TraversalError UDP UnknownMessage UnknownPeerError WarpgateError __version__
    auto_connect connect hookimpl plugin_registry register
""".split()


def test_all_is_exact() -> None:
    assert sorted(PUBLIC) == sorted(warpgate.__all__)
    assert set(warpgate.__all__) <= set(dir(warpgate))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_can_be_imported(name: str) -> None:
    value = getattr(warpgate, name)
    assert not isinstance(value, ModuleType)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((CORE / "__init__.py").read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        (f"{node.module}", alias.asname)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    table = {(module, name) for name, module in warpgate._MODULE_OF.items()}
    assert seen == table


def test_every_exception_is_public() -> None:
    raised = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert raised <= set(warpgate.__all__)


def test_functions_stay_functions_when_their_modules_are_imported() -> None:
    module = importlib.import_module("warpgate.node.auto_connect")
    node = importlib.import_module("warpgate.node")
    assert isinstance(module, ModuleType)
    assert node.auto_connect is module
    assert warpgate.auto_connect is module.auto_connect
    assert inspect.iscoroutinefunction(warpgate.auto_connect)
    assert inspect.iscoroutinefunction(warpgate.connect)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nodes'"):
        warpgate.Nodes  # noqa: B018 - the access is what is tested


def test_importing_loads_nothing_else() -> None:
    code = "import json, sys, warpgate; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = json.loads(done.stdout)
    assert [name for name in loaded if name.startswith("warpgate.")] == []
    heavy = {"asyncio", "pydantic", "cryptography", "aiomqtt", "pluggy", "importlib_metadata"}
    assert not heavy & set(loaded)
