"""What NATs do: the words of RFC 4787, their recognition, and the report; PURE."""
