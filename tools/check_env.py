"""Check that an environment holds our distributions as they are in ``dist/``, and no others.

``python tools/check_env.py warpgate-plugin-direct`` runs inside the environment and fails when a
distribution of ours came from anywhere but ``dist/``, when a sibling is there that the named
requirement does not declare, or when one that it declares is missing. Without this a test
environment could quietly test a stale core, or one from an index.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OURS = "warpgate"
DIST = Path(__file__).resolve().parent.parent / "dist"


def declared(requirement: str, installed: dict[str, Distribution]) -> set[str]:
    """Return the names of our distributions that a requirement needs, itself included."""
    needed: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = [Requirement(requirement)]
    while queue:
        wanted = queue.pop()
        name = canonicalize_name(wanted.name)
        extras = frozenset(wanted.extras)
        if not name.startswith(OURS) or (name, extras) in seen:
            continue
        seen.add((name, extras))
        needed.add(name)
        if name not in installed:
            continue
        for text in installed[name].requires or []:
            part = Requirement(text)
            if part.marker is None or any(
                part.marker.evaluate({"extra": extra}) for extra in extras | {""}
            ):
                queue.append(part)
    return needed


def problems(requirement: str, found: Iterable[Distribution], dist: Path = DIST) -> list[str]:
    """Return what is wrong with an environment, one line each; nothing when all is well.

    Args:
        requirement: what was installed, for example ``warpgate-core[all]``.
        found: the distributions of the environment.
        dist: the folder that ours must have come from.

    """
    installed: dict[str, Distribution] = {}
    for item in found:
        if (name := canonicalize_name(item.name)).startswith(OURS):
            installed[name] = item
    wrong = []
    for ours, item in sorted(installed.items()):
        record = item.read_text("direct_url.json")
        url = str(json.loads(record).get("url", "")) if record else "an index"
        if not url.startswith(dist.as_uri() + "/"):
            wrong.append(f"{ours} {item.version} came from {url}, not from {dist}")
    needed = declared(requirement, installed)
    for ours in sorted(installed.keys() - needed):
        wrong.append(f"{ours} is installed, but {requirement} does not declare it")
    for ours in sorted(needed - installed.keys()):
        wrong.append(f"{ours} is not installed, though {requirement} declares it")
    return wrong


def main(arguments: list[str]) -> int:
    """Check the running environment against the requirement given as the only argument."""
    (requirement,) = arguments
    found = problems(requirement, distributions())
    for line in found:
        print(f"wrong environment: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
