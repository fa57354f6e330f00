"""What ``import warpgate`` costs over ``import asyncio``, in fresh processes.

The bound is 50 ms. The two are measured in turn, so that a busy machine slows both, and the
median of the differences counts.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

BOUND_MS = 50.0
ROUNDS = 15
TIMER = "import time; t = time.perf_counter(); {}; print((time.perf_counter() - t) * 1000)"


def cost_ms(statement: str) -> float:
    """Return the milliseconds that a statement takes in a fresh interpreter."""
    command = [sys.executable, "-c", TIMER.format(statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    """Measure, print, and return 1 when the bound is missed."""
    cost_ms("import asyncio, warpgate")  # writes the byte code, warms the file cache
    bare, both, node = [], [], []
    for _ in range(ROUNDS):
        bare.append(cost_ms("import asyncio"))
        both.append(cost_ms("import asyncio, warpgate"))
        node.append(cost_ms("import asyncio, warpgate; warpgate.Node"))
    extra = statistics.median(b - a for a, b in zip(bare, both, strict=True))
    base = statistics.median(bare)
    print(f"import asyncio            {base:7.1f} ms")
    print(
        f"import asyncio, warpgate  {statistics.median(both):7.1f} ms   ratio {(base + extra) / base:.2f}"
    )
    print(f"… and warpgate.Node used  {statistics.median(node):7.1f} ms   (no bound)")
    print(f"import warpgate costs {extra:.1f} ms over asyncio (bound {BOUND_MS:.0f} ms)")
    return 1 if extra > BOUND_MS else 0


if __name__ == "__main__":
    sys.exit(main())
