"""``random_probe``: ports that can't be foretold are found by many sockets and many guesses."""
