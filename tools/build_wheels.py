"""Build every distribution: an sdist, and the wheel from that sdist, into ``dist/``.

Beside them goes ``dist/constraints.txt``, one line per distribution with the URL of its wheel
(``warpgate-core @ file:///…``). With it as ``UV_CONSTRAINT`` or ``PIP_CONSTRAINT`` an installer takes
our distributions from here and never from an index.

Needs ``build`` and ``hatchling``; run it as ``python tools/build_wheels.py``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"


def build(package: Path, target: Path) -> Path:
    """Build one distribution into ``target`` and return the path of its wheel.

    Raises:
        subprocess.CalledProcessError: the build failed; its output went to the terminal.

    """
    before = set(target.glob("*.whl"))
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(target),
        str(package),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        done.check_returncode()
    (wheel,) = set(target.glob("*.whl")) - before
    return wheel


def constraint(wheel: Path) -> str:
    """Return the constraints line that pins a distribution to this wheel."""
    name = wheel.name.split("-")[0].replace("_", "-")
    return f"{name} @ {wheel.resolve().as_uri()}"


def main() -> int:
    """Build all; ``dist/`` is replaced as a whole, and stays as it was when a build fails."""
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        fresh = Path(folder)
        for project in sorted(ROOT.glob("packages/*/pyproject.toml")):
            print(f"built {build(project.parent, fresh).name}", flush=True)
        shutil.rmtree(DIST, ignore_errors=True)
        DIST.mkdir()
        for file in sorted(fresh.iterdir()):
            shutil.move(file, DIST / file.name)
    lines = [constraint(wheel) for wheel in sorted(DIST.glob("*.whl"))]
    (DIST / "constraints.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
