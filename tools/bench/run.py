"""Run the measurements of this folder, each in a fresh process.

``python tools/bench/run.py`` runs all, ``python tools/bench/run.py import_time pipe`` those named. A
measurement is a script that prints its figures and exits with 1 when one misses its bound.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(wanted: list[str]) -> int:
    """Run the wanted measurements; return 1 when one failed, 2 for an unknown name."""
    known = {p.stem: p for p in sorted(HERE.glob("*.py")) if p.stem != "run" and p.stem[0] != "_"}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(f"no measurement called {', '.join(unknown)}; there are: {', '.join(known)}")
        return 2
    failed = []
    for name in wanted or known:
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, str(known[name])], check=False).returncode:
            failed.append(name)
    print(f"\nmissed their bounds: {', '.join(failed)}" if failed else "\nall within their bounds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
