"""Fuzzes the parsers of bytes from outside.

``python tools/fuzz/run.py [--seconds 60] [target …]`` shares the seconds among the targets and says
for each how many inputs were tried; an input that raises is kept in ``build/fuzz`` and ends it with
status 1. ``--seeds`` writes the targets' real messages into ``tools/fuzz/corpus``.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # for tools.fuzz
CORPUS = HERE / "corpus"
CRASHES = HERE.parents[1] / "build" / "fuzz"
MAX_BYTES = 4096


def write_seeds() -> None:
    """Write every target's seeds."""
    from tools.fuzz.targets import TARGETS

    for name, target in TARGETS.items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for seed in target.seeds():
            (folder / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


def fuzz(name: str, seconds: float) -> bool:
    """Fuzz one target for some seconds; return whether nothing was raised."""
    CRASHES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable, str(HERE / "one.py"), name,
            f"-max_total_time={max(1, round(seconds))}", f"-max_len={MAX_BYTES}", "-timeout=10",
            "-rss_limit_mb=1024", f"-artifact_prefix={CRASHES}/{name}-", "-print_final_stats=1",
            scratch, str(CORPUS / name),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    tried = re.search(r"number_of_executed_units:\s+(\d+)|^(\d+) inputs", output, re.MULTILINE)
    count = next((part for part in tried.groups() if part), "0") if tried else "0"
    good = done.returncode == 0 and int(count) > 0
    print(f"{name:<20} {count:>9} inputs  {'ok' if good else 'FAILED'}", flush=True)
    if not good:
        print(output[-4000:], flush=True)
    return good


def main() -> int:
    """Fuzz what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--seeds", action="store_true", help="write the seeds and end")
    options = parser.parse_args()
    from tools.fuzz.targets import TARGETS

    if options.seeds:
        write_seeds()
        return 0
    unknown = set(options.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"no target is called {', '.join(unknown)}; there are: {', '.join(TARGETS)}")
    names = options.targets or list(TARGETS)
    results = [fuzz(name, options.seconds / len(names)) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
