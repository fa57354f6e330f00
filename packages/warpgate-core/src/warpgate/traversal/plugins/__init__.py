"""Drop-in strategies: every ``<folder>/main.py`` below this package is imported at node start."""
