"""``python -m warpgate.cli``."""

from warpgate.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
