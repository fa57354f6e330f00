"""The hello of WIRE.md section 1: who is at the other end of a pipe, proven before the user sees it.

``wire`` and ``messages`` are the bytes, ``keys`` the cryptography, ``machine`` the two roles; all
four are pure. ``shell`` runs a machine on a pipe, ``inbound`` looks at an accepted connection.
"""
