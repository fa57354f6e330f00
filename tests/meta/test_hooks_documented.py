"""Every hook is documented with its exact arguments, and has a test."""

from __future__ import annotations

import inspect
import re

import pytest

from repository import PACKAGES, ROOT, hook_arguments
from warpgate import hookspecs

HEADING = re.compile(r"^## `(async )?(warpgate_\w+)\(([^)]*)\)`$", re.MULTILINE)


def documented() -> dict[str, tuple[bool, tuple[str, ...]]]:
    text = (ROOT / "docs" / "hooks.md").read_text("utf-8")
    return {
        name: (bool(colour), tuple(part.strip() for part in arguments.split(",") if part.strip()))
        for colour, name, arguments in HEADING.findall(text)
    }


def test_the_documents_have_every_hook_with_its_arguments() -> None:
    expected = {
        name: (inspect.iscoroutinefunction(getattr(hookspecs, name)), arguments)
        for name, arguments in hook_arguments().items()
    }
    assert len(expected) == 5
    assert documented() == expected


@pytest.mark.parametrize("hook", sorted(hook_arguments()))
def test_every_hook_has_a_test(hook: str) -> None:
    files = [path for package in PACKAGES for path in package.glob("tests/**/test_*.py")]
    assert any(re.search(rf"\bdef {hook}\b", path.read_text("utf-8")) for path in files)
