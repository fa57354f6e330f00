"""The laboratory's fixtures, where it is installed; without it the tests that need it are skipped."""

from __future__ import annotations

try:
    from warpgate_natlab.pytest_plugin import nat_pair, natlab, pytest_runtest_setup
except ImportError:  # the distribution is tested without the repository
    collect_ignore_glob = ["test_*_lab.py"]
else:
    __all__ = ["nat_pair", "natlab", "pytest_runtest_setup"]
