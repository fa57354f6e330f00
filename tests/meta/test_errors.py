"""The tree of exceptions, as drawn, as documented and as it is."""

from __future__ import annotations

import inspect
import re

from repository import ROOT
from warpgate import errors

ROOT_CLASS = "WarpgateError"
LINE = re.compile(r"((?:│   |    )*(?:├── |└── ))([A-Z]\w*)(?: \((\w+)\))?")


def drawn(text: str) -> dict[str, tuple[str, str | None]]:
    """Return class -> (parent, second base) of the first tree drawn in a text."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.strip() == ROOT_CLASS)
    indent = lines[start].index(ROOT_CLASS)
    tree: dict[str, tuple[str, str | None]] = {}
    path = [ROOT_CLASS]
    for line in lines[start + 1 :]:
        match = LINE.fullmatch(line[indent:].rstrip())
        if match is None:
            break
        depth = len(match[1]) // 4
        path[depth:] = [match[2]]
        tree[match[2]] = (path[depth - 1], match[3])
    return tree


def actual() -> dict[str, tuple[str, str | None]]:
    """Return the same of the classes."""
    tree = {}
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, errors.WarpgateError):
            bases = [base.__name__ for base in value.__bases__]
            if value is not errors.WarpgateError:
                tree[name] = (bases[0], bases[1] if len(bases) > 1 else None)
    return tree


def test_a_drawing_is_read() -> None:
    text = "A tree::\n\n  WarpgateError\n  ├── A\n  │   └── B (ValueError)\n  └── C\n      └── D\n\nmore"
    assert drawn(text) == {
        "A": ("WarpgateError", None),
        "B": ("A", "ValueError"),
        "C": ("WarpgateError", None),
        "D": ("C", None),
    }


def test_the_tree_in_the_docstring_equals_the_classes() -> None:
    assert drawn(errors.__doc__ or "") == actual()


def test_every_exception_stands_in_the_documents() -> None:
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    assert drawn(page) == actual()


def test_every_exception_is_explained() -> None:
    assert [name for name in actual() if not (getattr(errors, name).__doc__ or "").strip()] == []
