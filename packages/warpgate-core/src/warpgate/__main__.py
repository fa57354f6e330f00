"""``python -m warpgate``: the same as the ``warpgate`` command."""

from warpgate.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
