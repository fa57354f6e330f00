"""Every exception that warpgate raises on purpose.

::

    WarpgateError
    ├── PluginError
    │   ├── PluginLoadError
    │   ├── PluginDefinitionError
    │   ├── PluginConflictError
    │   └── PluginIncompatibleError
    ├── ConfigError (ValueError)
    ├── AddressError (ValueError)
    │   ├── InvalidAddressError
    │   ├── UnknownPeerError
    │   ├── KeyChangedError
    │   └── NoSharedFamilyError
    ├── ProtocolError
    │   ├── LocalProtocolError
    │   └── RemoteProtocolError
    │       ├── MessageTooLarge
    │       ├── UnknownMessage
    │       ├── StaleMessage
    │       └── BadSignature
    ├── SignallingError (ConnectionError)
    ├── TraversalError
    │   ├── AttemptSkipped
    │   └── NoPathError
    ├── RelayError (ConnectionError)
    │   ├── AllocationRefused
    │   └── AllocationExpired
    └── PipeClosed (ConnectionError)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warpgate.traversal.report import SkipReason


class WarpgateError(Exception):
    """The root of the tree: catch it to catch everything that warpgate raises on purpose."""


class PluginError(WarpgateError):
    """Something is wrong with a plugin distribution or a strategy."""


class PluginLoadError(PluginError):
    """A plugin could not be imported."""


class PluginDefinitionError(PluginError):
    """A plugin was imported but breaks the class contract or the hook specifications."""


class PluginConflictError(PluginError):
    """A plugin claims a name that is taken."""


class PluginIncompatibleError(PluginError):
    """A plugin was made for another version of the plugin interface."""


class ConfigError(WarpgateError, ValueError):
    """A setting or an argument names something unknown, or has a value that can't be used."""


class AddressError(WarpgateError, ValueError):
    """A peer's address can't be used."""


class InvalidAddressError(AddressError):
    """Not an address: truncated, altered, oversize, of another version or not signed by its key."""


class UnknownPeerError(AddressError):
    """A nickname that no resolver knows."""


class KeyChangedError(AddressError):
    """The key behind a name is not the one that was pinned for it."""


class NoSharedFamilyError(AddressError):
    """The two peers have no address family in common."""


class ProtocolError(WarpgateError):
    """What two peers say to each other broke the rules; never raised itself, only its branches."""


class LocalProtocolError(ProtocolError):
    """This side was about to break the protocol: a bug in the caller."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol; what it sent was dropped."""


class MessageTooLarge(RemoteProtocolError):
    """A message or a field of it exceeds its cap."""


class UnknownMessage(RemoteProtocolError):
    """A message of a kind that nothing here understands."""


class StaleMessage(RemoteProtocolError):
    """A message outside its time window, or (``duplicate``) one that was accepted before."""

    duplicate = False


class BadSignature(RemoteProtocolError):
    """A signature or a seal that does not verify."""


class SignallingError(WarpgateError, ConnectionError):
    """No signal transport could carry a message to the peer."""


class TraversalError(WarpgateError):
    """An attempt to connect failed."""


class AttemptSkipped(TraversalError):
    """A strategy has found that there is nothing for it to try: that is no failure.

    Raise it out of ``run``, or give it to ``result.set_exception``: the attempt then stands among
    the skips of the report.

    Args:
        detail: why, or what the reason is about, in words.
        reason: one of the core's reasons; None: the strategy has found nothing that it could try.

    """

    def __init__(self, detail: str = "", reason: SkipReason | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.reason = reason

    def __str__(self) -> str:
        if self.reason is None:
            return self.detail
        return f"{self.reason.value} ({self.detail})" if self.detail else str(self.reason.value)


class NoPathError(TraversalError):
    """Nothing that was tried led to a pipe; the text has one line per attempt."""


class RelayError(WarpgateError, ConnectionError):
    """A relay failed."""


class AllocationRefused(RelayError):
    """A relay would not allocate an address."""


class AllocationExpired(RelayError):
    """A relay's allocation ended while it was in use."""


class PipeClosed(WarpgateError, ConnectionError):
    """The pipe is closed.

    ``partial`` holds the bytes that ``recv_n`` had gathered when the pipe ended.
    """

    def __init__(self, message: str = "the pipe is closed", partial: bytes = b"") -> None:
        super().__init__(message)
        self.partial = partial
