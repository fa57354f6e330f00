"""What peers say to each other: addresses, messages and sealed signals, as bytes.

Everything here is pure: no input or output, no clock, no randomness of its own. Time comes in as
an argument, and what a peer sends either becomes a value or raises the declared error.
"""
