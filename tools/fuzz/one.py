"""Fuzzes one target in this process, which ends with it: ``one.py TARGET [libFuzzer's arguments]``.

Coverage-guided by atheris where that is installed; otherwise mutations of the corpus at random.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for tools.fuzz

MAX_INPUT = 4096


def by_coverage(name: str, arguments: list[str]) -> None:
    """Hand over to atheris; does not return."""
    import atheris

    with atheris.instrument_imports(
        include=[
            "warpgate",
            "warpgate_plugin_direct",
            "warpgate_plugin_punch",
            "warpgate_plugin_turn",
        ]
    ):
        from tools.fuzz.targets import TARGETS, trust_signatures
    trust_signatures()
    run = TARGETS[name].run
    atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()


def at_random(name: str, seconds: float, corpus: Path, crashes: Path) -> int:
    """Mutate the corpus until the time is up; return 1 when something was raised."""
    from tools.fuzz.targets import TARGETS, trust_signatures

    trust_signatures()
    target = TARGETS[name]
    known = [path.read_bytes() for path in sorted(corpus.glob("*"))] or list(target.seeds())
    chance, ends, count = random.Random(0), time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        data = bytearray(chance.choice(known))
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(data) + 1)
            what = chance.randrange(3)
            if what == 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            elif what == 1:
                del data[at : at + chance.randint(1, 16)]
            else:
                data[at:at] = chance.randbytes(chance.randint(1, 16))
        count += 1
        try:
            target.run(bytes(data[:MAX_INPUT]))
        except BaseException:
            crashes.mkdir(parents=True, exist_ok=True)
            (crashes / f"crash-{name}").write_bytes(data)
            raise
    print(f"{count} inputs by mutation alone; pip install atheris for coverage")
    return 0


if __name__ == "__main__":
    try:
        import atheris  # noqa: F401
    except ImportError:
        values = dict(part.lstrip("-").split("=", 1) for part in sys.argv[2:] if "=" in part)
        folders = [Path(part) for part in sys.argv[2:] if not part.startswith("-")]
        seconds = float(values["max_total_time"])
        prefix = Path(values["artifact_prefix"])
        sys.exit(at_random(sys.argv[1], seconds, folders[-1], prefix))
    by_coverage(sys.argv[1], sys.argv[2:])
