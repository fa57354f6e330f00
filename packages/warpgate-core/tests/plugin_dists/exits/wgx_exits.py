raise SystemExit("no such platform")
