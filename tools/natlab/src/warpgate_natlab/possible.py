"""Which pairs of networks can have a direct path in principle; ``docs/laboratory.md`` has the reasons."""

from __future__ import annotations

from typing import Final

from .profiles import EI, Expectation, Profile

IPV4: Final = 4


def direct_possible(a: Profile, b: Profile) -> bool | None:
    """Return whether two hosts behind these networks can have a path without a relay.

    A counting NAT can be foretold; one that draws from a known block of 512 ports can be hit by
    guesses, from either side; one that draws from the whole range only where the other side keeps one
    port for all destinations. Over TCP nobody guesses in the whole range.

    Returns:
        None where the peers share no family, or where it is possible but not required.

    """
    shared = a.expect.keys() & b.expect.keys() & {4, 6}
    if not shared:
        return None
    found = [_in_family(a.expect[family], b.expect[family]) for family in sorted(shared)]
    return True if True in found else None if None in found else False


def _in_family(a: Expectation, b: Expectation) -> bool | None:
    if "443" in (a.tcp, b.tcp):
        # One that lets only port 443 out reaches nobody: nobody listens there.
        return False
    if "blocked" in (a.mapping, b.mapping):
        hard = [side for side in (a, b) if _hard(side.tcp_mapping)]
        kinds = {side.allocation for side in hard}
        if not hard or kinds == {"sequential"}:
            return True
        return None if len(hard) == 1 else False
    hard = [side for side in (a, b) if _hard(side.mapping)]
    if len(hard) < 2:
        return True
    kinds = {side.allocation for side in hard}
    if kinds in ({"sequential"}, {"block"}):
        return True
    return None if kinds == {"sequential", "block"} else False


def _hard(mapping: str) -> bool:
    return mapping not in (EI, "none", "blocked")
