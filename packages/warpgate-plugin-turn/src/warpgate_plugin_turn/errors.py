"""What can be wrong with a relay, each as an error of its own; PURE.

All are :class:`~warpgate.errors.RelayError`: a caller that does not care catches that one.
"""

from __future__ import annotations

from warpgate.errors import AllocationExpired, AllocationRefused, RelayError
from warpgate.stun.attributes import ErrorCode
from warpgate.stun.transaction import printable


class NoServers(RelayError):
    """No TURN server is configured here."""


class NoStreamServers(RelayError):
    """None of the configured TURN servers is reached over TCP or TLS, as streams need (RFC 6062)."""


class ServerUnreachable(RelayError):
    """The server does not answer, or nothing listens there."""


class ServerSilent(AllocationExpired):
    """The server stopped answering while its allocation was in use."""


class ConnectionLost(AllocationExpired):
    """The connection to the server ended while its allocation was in use."""


class CertificateRefused(RelayError):
    """The server's certificate is not signed by a known authority, or is for another name."""


class WrongCredentials(AllocationRefused):
    """The server does not know the user name, or the password is wrong (401, 441)."""


class CredentialsExpired(WrongCredentials):
    """The time in a time-limited user name is over (401)."""


class QuotaReached(AllocationRefused):
    """The user has as many allocations as it may have (486)."""


class CapacityReached(AllocationRefused):
    """The server has no room for another allocation (508)."""


class NotSupported(AllocationRefused):
    """The server does not do what was asked for: a transport or a family (440, 442, 420)."""


class Forbidden(AllocationRefused):
    """The server's rules forbid it: the user, or the peer's address (403)."""


class Redirected(RelayError):
    """The server sends its clients elsewhere (300).

    ``alternate`` is ``(ip, port)``, None when the server named none.
    """

    def __init__(self, message: str, alternate: tuple[str, int] | None = None) -> None:
        super().__init__(message)
        self.alternate = alternate


_KINDS: dict[int, tuple[type[RelayError], str]] = {
    401: (WrongCredentials, "refused the user name or the password"),
    403: (Forbidden, "forbids it"),
    420: (NotSupported, "does not understand an attribute"),
    437: (AllocationExpired, "has no such allocation any more; was it restarted?"),
    438: (AllocationRefused, "called every nonce stale"),
    440: (NotSupported, "has no relay addresses of this family"),
    441: (WrongCredentials, "says that the allocation belongs to other credentials"),
    442: (NotSupported, "does not relay this transport"),
    443: (NotSupported, "says that the peer's address is of another family than the relay's"),
    446: (RelayError, "has a connection to that peer already"),
    447: (RelayError, "can't connect to the peer"),
    486: (QuotaReached, "says that the user has reached its quota of allocations"),
    508: (CapacityReached, "has no room for another allocation"),
}


def named(error: Exception) -> str:
    """Return an error's class and text, as a report shows them."""
    return f"{type(error).__name__}: {error}"


def error_for(code: ErrorCode, server: str, doing: str) -> RelayError:
    """Return the error for an error response.

    Args:
        code: the response's ERROR-CODE.
        server: the server's name, for the text.
        doing: the request, for example ``Allocate``.

    """
    kind, words = _KINDS.get(code.code, (AllocationRefused, "refused"))
    if code.code == 437 and doing == "Allocate":
        kind, words = AllocationRefused, "has an allocation for this very socket already"
    reason = printable(code.reason)
    said = f"{code.code} {reason}".rstrip()
    return kind(f"TURN server {server} {words} ({doing}: {said})")
