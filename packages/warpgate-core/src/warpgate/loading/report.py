"""What loading found: strategies, objects with hooks, and what was rejected and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from warpgate.errors import (
    PluginConflictError,
    PluginDefinitionError,
    PluginError,
    PluginIncompatibleError,
    PluginLoadError,
)
from warpgate.hooks import LoadedObject
from warpgate.net.constants import transport_name
from warpgate.plugin import Plugin

DROP_IN = "drop-in"
REGISTERED = "registered code"
CORE = "warpgate-core"

_ERRORS: dict[str, type[PluginError]] = {
    "api": PluginIncompatibleError,
    "import": PluginLoadError,
    "contract": PluginDefinitionError,
    "hooks": PluginDefinitionError,
    "name": PluginConflictError,
}


def one_line(error: object) -> str:
    """Return an error's text on one line, with its type where the type says something of its own."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001  # a plugin's exception may have any __str__
        text = "(its text can't be read)"
    if isinstance(error, BaseException) and not isinstance(error, PluginError):
        kind = type(error).__name__
        return f"{kind}: {text}" if text else kind
    return text


def source_text(distribution: str, version: str, entry_point: str) -> str:
    """Return where something comes from, in words."""
    if distribution in (DROP_IN, REGISTERED):
        return f"{distribution} {entry_point}"
    return f"{distribution} {version}, entry point {entry_point}"


@dataclass(frozen=True, slots=True)
class PluginFailure:
    """Why something was rejected.

    ``stage`` is ``api``, ``import``, ``contract``, ``hooks`` or ``name`` (in this order of
    checks), or ``setup`` for a strategy that failed on a node. For what did not come from a
    distribution, ``distribution`` is ``drop-in`` or ``registered code``, ``version`` is empty, and
    ``entry_point`` is the file or the class.
    """

    distribution: str
    version: str
    entry_point: str
    stage: str
    error: BaseException
    mend: str

    @property
    def cause(self) -> str:
        """The error's text on one line."""
        return one_line(self.error)

    @property
    def source(self) -> str:
        """Distribution, version and entry point."""
        return source_text(self.distribution, self.version, self.entry_point)

    def __str__(self) -> str:
        return f"{self.source} [{self.stage}]: {self.cause}; to mend: {' '.join(self.mend.split())}"

    def as_dict(self) -> dict[str, str]:
        """Return all of it as text, for JSON."""
        return {
            "distribution": self.distribution,
            "version": self.version,
            "entry_point": self.entry_point,
            "stage": self.stage,
            "cause": self.cause,
            "mend": self.mend,
        }

    def exception(self) -> PluginError:
        """Return the failure as an exception of the tree, caused by the original error."""
        made = _ERRORS.get(self.stage, PluginError)(str(self))
        made.__cause__ = self.error
        return made


@dataclass(frozen=True, slots=True)
class LoadedStrategy:
    """A strategy's class, and where it came from; ``entry_point`` as in :class:`PluginFailure`."""

    name: str
    cls: type[Plugin]
    distribution: str
    version: str
    entry_point: str

    @property
    def phase(self) -> str | None:
        """The phase; None for an auxiliary."""
        return self.cls.phase

    @property
    def transport(self) -> str:
        """``"tcp"`` or ``"udp"``."""
        return transport_name(self.cls.transport)

    @property
    def makes(self) -> str:
        """All transports that it can make, the usual one first: ``"udp, tcp"``."""
        others = (transport_name(each) for each in self.cls.transports)
        return ", ".join(dict.fromkeys((self.transport, *others)))

    @property
    def source(self) -> str:
        """Distribution, version and entry point."""
        return source_text(self.distribution, self.version, self.entry_point)

    def as_dict(self) -> dict[str, str | None]:
        """Return all of it as text, for JSON."""
        return {
            "name": self.name,
            "phase": self.phase,
            "transport": self.transport,
            "distribution": self.distribution,
            "version": self.version,
            "entry_point": self.entry_point,
        }


@dataclass(slots=True)
class LoadReport:
    """What there is to install on a node.

    ``strategies`` are in the order in which they are preferred within a phase, auxiliaries last;
    ``objects`` go on the node's plugin manager; ``rejected`` harmed nothing. ``blocked`` holds the
    names in ``block_plugins``, for the core's own auxiliaries, which are not loaded here.
    """

    strategies: list[LoadedStrategy] = field(default_factory=list)
    objects: list[LoadedObject] = field(default_factory=list)
    rejected: list[PluginFailure] = field(default_factory=list)
    blocked: frozenset[str] = frozenset()

    def __str__(self) -> str:
        rows = [
            (item.name, item.phase or "auxiliary", item.makes, item.source)
            for item in self.strategies
        ]
        rows += [
            ("(hooks)", "", "", source_text(o.distribution, o.version, o.entry_point))
            for o in self.objects
        ]
        lines = table(("strategy", "phase", "transport", "from"), rows)
        lines += [f"rejected: {failure}" for failure in self.rejected]
        return "\n".join(lines)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a plain table; nothing is wrapped or cut."""
    grid = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in grid) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in grid
    ]
