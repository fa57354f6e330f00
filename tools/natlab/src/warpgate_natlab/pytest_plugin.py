"""pytest fixtures: ``pytest_plugins = ["warpgate_natlab.pytest_plugin"]`` in a root ``conftest.py``.

``natlab``
    a factory: ``lab = natlab(a="fullcone", b="linux", loss=0.05)``; arguments as for
    :class:`~warpgate_natlab.Lab`. What it made is taken down after the test.
``same_lan``, ``same_lan_no_hairpin``, ``two_nics``
    a laboratory of that named pair.
``nat_pair``
    a laboratory for ``@pytest.mark.parametrize("nat_pair", ["open x linux", …], indirect=True)``.

Tests that use one of them get the marker ``netns``. Without the privileges they are skipped, with
the reason; where a skip would hide something (CI), set ``WARPGATE_NATLAB_REQUIRED=1``: it fails then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from .lab import Lab
from .namespaces import why_not
from .profiles import Pair, Profile

REQUIRED = "WARPGATE_NATLAB_REQUIRED"
FIXTURES = frozenset({"natlab", "nat_pair", "same_lan", "same_lan_no_hairpin", "two_nics"})


class Factory(Protocol):
    """The type of the fixture ``natlab``."""

    def __call__(
        self,
        a: str | Profile = "open",
        b: str | Profile = "open",
        *,
        pair: str | Pair | None = None,
        **arguments: Any,
    ) -> Lab:
        """Build a laboratory."""


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "netns: needs network namespaces (Linux, root, iproute2)")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what uses a laboratory."""
    if FIXTURES & set(getattr(item, "fixturenames", ())) and not item.get_closest_marker("netns"):
        item.add_marker(pytest.mark.netns)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``netns`` where it can't run, and say why."""
    if item.get_closest_marker("netns") is None:
        return
    reason = why_not()
    if reason and os.environ.get(REQUIRED):
        pytest.fail(f"{reason}, and {REQUIRED} is set", pytrace=False)
    if reason:
        pytest.skip(reason)


@pytest.fixture
def natlab() -> Iterator[Factory]:
    """Return a factory of laboratories."""
    labs: list[Lab] = []

    def build(
        a: str | Profile = "open",
        b: str | Profile = "open",
        *,
        pair: str | Pair | None = None,
        **arguments: Any,
    ) -> Lab:
        lab = Lab(a, b, pair=pair, **arguments)
        labs.append(lab)
        return lab

    try:
        yield build
    finally:
        for lab in reversed(labs):
            lab.close()


@pytest.fixture
def nat_pair(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Return a laboratory for the pair that the test is parametrized with."""
    with Lab(pair=_named(request.param)) as lab:
        yield lab


def _named(text: str) -> Pair:
    from .profiles import pair

    return pair(text)


@pytest.fixture
def same_lan() -> Iterator[Lab]:
    """Return a laboratory with both hosts in one network whose NAT hairpins."""
    with Lab(pair="same-lan") as lab:
        yield lab


@pytest.fixture
def same_lan_no_hairpin() -> Iterator[Lab]:
    """Return a laboratory with both hosts in one network whose NAT does not hairpin."""
    with Lab(pair="same-lan-no-hairpin") as lab:
        yield lab


@pytest.fixture
def two_nics() -> Iterator[Lab]:
    """Return a laboratory whose host a has two interfaces behind different NATs."""
    with Lab(pair="two-nics") as lab:
        yield lab
