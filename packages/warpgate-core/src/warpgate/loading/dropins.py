"""Plugins that someone dropped into a folder.

Two kinds of places are looked at: ``warpgate/traversal/plugins``, where each subfolder with a
``main.py`` is a plugin, and the folders in ``conf["plugin_dirs"]``, where each ``*.py`` file is one
too. Names that begin with a dot or an underscore are left alone. A plugin may import what lies
beside it relatively (``from .proto import …`` in a ``main.py``). A folder's plugins are imported
once per process.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from warpgate.errors import ConfigError
from warpgate.loading.examine import Outcome, Source, examine, guarded
from warpgate.loading.report import DROP_IN

BUILT_IN: Final = "warpgate.traversal.plugins"
SYNTHETIC: Final = "warpgate_plugin_dir_"
"""How the packages begin that stand for the folders in ``plugin_dirs``."""


@dataclass(frozen=True, slots=True)
class DropIn:
    """A plugin in a folder.

    ``name`` is the subfolder's or the file's name, without suffix; ``module`` is what is imported;
    all that lies below ``source.module`` is its own.
    """

    name: str
    source: Source
    module: str

    def outcome(self) -> Outcome:
        """Import and examine it."""
        failed = Outcome(self.source)
        loaded: list[Any] = []
        if not guarded(
            self.source,
            "import",
            failed,
            lambda: loaded.append(importlib.import_module(self.module)),
        ):
            return failed
        return examine(self.source, loaded[0])


def drop_ins(folders: Sequence[str | Path]) -> list[DropIn]:
    """List the drop-ins, by folder and name, without importing any.

    Raises:
        ConfigError: an entry of ``folders`` is no folder.

    """
    found = [
        drop_in
        for folder in importlib.import_module(BUILT_IN).__path__
        for drop_in in _in_folder(Path(folder), BUILT_IN, files=False)
    ]
    for entry in folders:
        folder = Path(entry).expanduser()
        if not folder.is_dir():
            raise ConfigError(
                f"plugin_dirs: {str(entry)!r} is no folder; create it or take it out of the list"
            )
        found.extend(_in_folder(folder, _package_for(folder.resolve()), files=True))
    return found


def _in_folder(folder: Path, package: str, *, files: bool) -> Iterator[DropIn]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_")):
            continue
        main = path / "main.py"
        if main.is_file():
            owned = f"{package}.{path.name}"
            yield DropIn(path.name, Source(DROP_IN, "", str(main), owned), f"{owned}.main")
        elif files and path.suffix == ".py" and path.is_file():
            owned = f"{package}.{path.stem}"
            yield DropIn(path.stem, Source(DROP_IN, "", str(path), owned), owned)


def _package_for(folder: Path) -> str:
    """Return the name of the package that stands for a folder, creating it the first time.

    A package of its own keeps a folder's names apart from everything else that can be imported,
    and gives its modules something to be relative to, without a change to ``sys.path``.
    """
    name = SYNTHETIC + hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    if name not in sys.modules:
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[name] = importlib.util.module_from_spec(spec)
    importlib.invalidate_caches()
    return name
