"""Selective deployment: which plugins a node may load, by configuration or environment."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from warpgate.errors import ConfigError
from warpgate.loading.report import CORE, PluginFailure

DIRECT: Final = "warpgate-plugin-direct"
PUNCH: Final = "warpgate-plugin-punch"
TURN: Final = "warpgate-plugin-turn"

CORE_AUXILIARIES: Final = ("get_addr", "return_addr", "fan_out")
RESERVED: Final[Mapping[str, str]] = {
    "direct_connect": DIRECT,
    "reverse_connect": DIRECT,
    "tcp_punch": PUNCH,
    "udp_punch": PUNCH,
    "random_probe": PUNCH,
    "turn": TURN,
    **dict.fromkeys(CORE_AUXILIARIES, CORE),
}
"""Names that belong to a distribution; nobody else may claim them."""


@dataclass(frozen=True, slots=True)
class Filters:
    """The allow-list (None: everything) and the block-list, and where each was set.

    The block-list wins over the allow-list. Auxiliaries need no place on the allow-list once their
    entry point may be imported.
    """

    allow: tuple[str, ...] | None = None
    block: frozenset[str] = frozenset()
    allow_origin: str = "plugins"
    block_origin: str = "block_plugins"

    @classmethod
    def make(cls, conf: Mapping[str, Any], environ: Mapping[str, str]) -> Filters:
        """Take the lists from the environment, else from a node's configuration."""
        allow, allow_origin = _choose("plugins", "WARPGATE_PLUGINS", conf, environ)
        block, block_origin = _choose("block_plugins", "WARPGATE_BLOCK_PLUGINS", conf, environ)
        return cls(allow, frozenset(block or ()), allow_origin, block_origin)

    def may_import(self, entry_point: str) -> bool:
        """Return whether an entry point may be imported."""
        return entry_point not in self.block and (self.allow is None or entry_point in self.allow)

    def keeps(self, name: str, phase: str | None, origin: str) -> bool:
        """Return whether a strategy is kept.

        Args:
            name: its own name.
            phase: its phase; None for an auxiliary.
            origin: the name of the entry point or drop-in that it came from.

        """
        if name in self.block:  # what a blocked origin would bring is not imported
            return False
        return self.allow is None or phase is None or name in self.allow or origin in self.allow

    def rank(self, name: str, origin: str) -> int:
        """Return a strategy's place in the allow-list; 0 when there is none."""
        for wanted in (name, origin):
            if self.allow is not None and wanted in self.allow:
                return self.allow.index(wanted)
        return 0

    def check_known(self, known: Collection[str], rejected: Sequence[PluginFailure]) -> None:
        """Refuse names that fit nothing; blocking a reserved one that is not installed is fine.

        Args:
            known: every name of an entry point, a drop-in, a strategy or a core auxiliary.
            rejected: mentioned, since an unknown name may have been one of theirs.

        Raises:
            ConfigError: lists the known names.

        """
        blocked = tuple(sorted(self.block - RESERVED.keys()))
        for origin, names in (
            (self.allow_origin, self.allow or ()),
            (self.block_origin, blocked),
        ):
            for name in names:
                if name not in known:
                    raise ConfigError(_unknown(origin, name, known, rejected))


def _choose(
    key: str, variable: str, conf: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[tuple[str, ...] | None, str]:
    if variable in environ:
        return split_list(environ[variable]), variable
    value = conf.get(key)
    return (None if value is None else tuple(value)), key


def split_list(text: str) -> tuple[str, ...]:
    """Split a comma-separated list; blanks round the names and empty names don't count."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _unknown(
    origin: str, name: str, known: Collection[str], rejected: Sequence[PluginFailure]
) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    text = f"{origin}: there is no strategy or entry point {name!r}"
    if name in RESERVED:
        text += f"; install it with: pip install {RESERVED[name]}"
    elif near:
        text += f"; did you mean {near[0]!r}?"
    text += f" (known: {', '.join(sorted(known))})"
    return "\n".join([text, *(f"rejected: {failure}" for failure in rejected)])
