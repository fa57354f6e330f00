"""A node's keys and where they are kept, and the ids of the machine it runs on."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import secrets
import stat
import sys
import uuid
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from warpgate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

KEY_LENGTH: Final = 32
SIGNATURE_LENGTH: Final = 64
KEY_FILE_NAME: Final = "identity.key"
PORT_RANGE: Final = range(10_000, 30_000)

_SECRET_LENGTH: Final = 64  # the Ed25519 seed, then the X25519 seed
_NODE_ID_LENGTH: Final = 52  # 32 bytes in base32
_FILE_HEADER: Final = "warpgate-identity-1"
_FILE_CHECK_LENGTH: Final = 4
_MAX_FILE_BYTES: Final = 1024
_COMMAND_TIMEOUT_S: Final = 5


class Identity:
    """A node's two key pairs: Ed25519 to sign, X25519 to receive sealed signals."""

    __slots__ = ("_seeds", "_signing", "exchange_key", "exchange_private", "public_key")

    def __init__(self, seeds: bytes) -> None:
        """Derive the keys.

        Args:
            seeds: 64 bytes: the Ed25519 seed (RFC 8032) and the X25519 seed (RFC 7748).

        Raises:
            ValueError: not 64 bytes.

        """
        if len(seeds) != _SECRET_LENGTH:
            raise ValueError(f"an identity is made of {_SECRET_LENGTH} bytes, not {len(seeds)}")
        self._seeds = bytes(seeds)
        self._signing = Ed25519PrivateKey.from_private_bytes(self._seeds[:KEY_LENGTH])
        self.exchange_private: X25519PrivateKey = X25519PrivateKey.from_private_bytes(
            self._seeds[KEY_LENGTH:]
        )
        self.public_key: bytes = self._signing.public_key().public_bytes_raw()
        self.exchange_key: bytes = self.exchange_private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, entropy: Callable[[int], bytes] = os.urandom) -> Identity:
        """Return a new identity from 64 bytes of ``entropy``."""
        return cls(entropy(_SECRET_LENGTH))

    @classmethod
    def from_bytes(cls, data: bytes) -> Identity:
        """Return the identity that :meth:`to_bytes` wrote.

        Raises:
            ValueError: ``data`` is not 64 bytes.

        """
        return cls(data)

    def to_bytes(self) -> bytes:
        """Return the two secret seeds, 64 bytes; whoever has them is this node."""
        return self._seeds

    @property
    def node_id(self) -> str:
        """The public key as text, 52 characters."""
        return node_id_text(self.public_key)

    def sign(self, data: bytes) -> bytes:
        """Return the Ed25519 signature of ``data``, 64 bytes."""
        return self._signing.sign(data)

    def __repr__(self) -> str:
        """Name the public id only: a repr ends up in logs."""
        return f"Identity({self.node_id})"


def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Return whether ``signature`` is ``public_key``'s for ``data``; malformed ones are not."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=4096)
def node_id_text(public_key: bytes) -> str:
    """Return a 32-byte public key as 52 characters of lower-case base32 (RFC 4648), unpadded.

    Raises:
        ValueError: not 32 bytes.

    """
    if len(public_key) != KEY_LENGTH:
        raise ValueError(f"a node's key has {KEY_LENGTH} bytes, not {len(public_key)}")
    return base64.b32encode(public_key).decode("ascii").rstrip("=").lower()


def node_id_bytes(text: str) -> bytes:
    """Return the public key of a node id; upper and lower case are the same.

    Raises:
        ValueError: ``text``, which the error names, is no node id.

    """
    shown = text if len(text) <= 80 else text[:77] + "..."
    if len(text) == _NODE_ID_LENGTH and text.isascii():
        with suppress(binascii.Error):
            key = base64.b32decode(text.upper() + "=" * 4)
            # The last character has 4 bits to spare: only one of its spellings is the id.
            if node_id_text(key) == text.lower():
                return key
    raise ValueError(
        f"{shown!r} is no node id: expected {_NODE_ID_LENGTH} characters of base32 (a-z, 2-7)"
    )


def load_or_create(folder: Path | None) -> Identity:
    """Return the identity kept in a folder; make folder and identity when there is none.

    Processes that start at once on an empty folder agree on one identity: the key is written to a
    file of its own and then given its final name, which only the first can do.

    Args:
        folder: where ``identity.key`` is; None for an identity in memory only.

    Raises:
        ConfigError: the file is damaged or can't be read or written; the text says what to do.

    """
    if folder is None:
        return Identity.generate()
    path = Path(folder) / KEY_FILE_NAME
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return _read_key(path)
        except FileNotFoundError:
            _create_key(path, Identity.generate())
            return _read_key(path)
    except OSError as error:
        raise ConfigError(
            f"the key file {path} can't be read or written ({error.strerror or error}): give this "
            'user access to it, or set "install_path" to another folder'
        ) from error


def rotate(folder: Path) -> tuple[Identity, Identity, Path]:
    """Replace the identity kept in a folder by a new one, and keep the old one as a backup.

    At every moment the folder has a whole key file, and the old key is in one of its files. No node
    may be running on the folder.

    Args:
        folder: where ``identity.key`` is.

    Returns:
        The old identity, the new one, and the backup's path: ``identity.key.<first 8 of the old
        id>.old``, which takes the old key back into use when it is renamed to ``identity.key``.

    Raises:
        ConfigError: there is no key yet, it is damaged, or the folder can't be written.

    """
    path = folder / KEY_FILE_NAME
    try:
        old, new = _read_key(path), Identity.generate()
        backup = path.with_name(f"{path.name}.{old.node_id[:8]}.old")
        _create_key(backup, old)
        temporary = _write_key(path, new)
        try:
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except FileNotFoundError:
        raise ConfigError(f"there is no key file {path} to rotate") from None
    except OSError as error:
        raise ConfigError(
            f"the key file {path} can't be replaced ({error.strerror or error}): give this user "
            "access to it and its folder"
        ) from error
    return old, new, backup


def _read_key(path: Path) -> Identity:
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:  # O_NONBLOCK: a fifo must not hang us
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise ConfigError(f"the key file {path} is no regular file: move it away")
        if sys.platform != "win32" and info.st_mode & 0o077:
            log.warning(
                "the key file %s was open to other users (mode %o); it is 600 now. If others use "
                "this machine, delete it for a new identity",
                path,
                stat.S_IMODE(info.st_mode),
            )
            os.fchmod(file.fileno(), 0o600)
        data = file.read(_MAX_FILE_BYTES)
    try:
        return Identity(_decode_key(data))
    except ValueError as error:
        raise ConfigError(
            f"the key file {path} is damaged ({error}): restore it from a backup, or delete it to "
            "start with a new identity (peers that pinned the old one will refuse the new one)"
        ) from None


def _encode_key(seeds: bytes) -> bytes:
    check = hashlib.sha256(seeds).digest()[:_FILE_CHECK_LENGTH]
    return f"{_FILE_HEADER} {base64.b64encode(seeds + check).decode('ascii')}\n".encode("ascii")


def _decode_key(data: bytes) -> bytes:
    # The texts must not quote the data: it may be most of a secret key.
    if not data:
        raise ValueError("it is empty")
    fields = data.split()
    if fields[:1] != [_FILE_HEADER.encode("ascii")]:
        raise ValueError(f'it does not begin with "{_FILE_HEADER}"')
    try:
        content = base64.b64decode(b"".join(fields[1:]), validate=True)
    except binascii.Error:
        raise ValueError("it is cut short or not base64") from None
    seeds, check = content[:_SECRET_LENGTH], content[_SECRET_LENGTH:]
    if len(content) != _SECRET_LENGTH + _FILE_CHECK_LENGTH:
        raise ValueError("it is of the wrong length")
    if not hmac.compare_digest(hashlib.sha256(seeds).digest()[:_FILE_CHECK_LENGTH], check):
        raise ValueError("its checksum is wrong")
    return seeds


def _create_key(path: Path, identity: Identity) -> None:
    """Write the key under ``path`` unless somebody else did so first."""
    temporary = _write_key(path, identity)
    try:
        with suppress(FileExistsError):
            _name_first(temporary, path)
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _write_key(path: Path, identity: Identity) -> Path:
    """Write the key to a new file beside ``path``, and return that."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(_encode_key(identity.to_bytes()))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder durable."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some file systems can't sync a folder
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _name_first(temporary: Path, path: Path) -> None:
    """Give the file its final name, or raise FileExistsError when the name is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError, AttributeError):  # no hard links here (FAT, some FUSE)
        if sys.platform == "win32":
            temporary.rename(path)  # fails when the name is taken
            return
        # A POSIX rename replaces, so whoever renames must hold a lock. It is freed with its holder.
        import fcntl

        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                raise FileExistsError(path) from None
            temporary.rename(path)
        finally:
            os.close(descriptor)


def machine_id() -> bytes:
    """Return 32 bytes that identify this machine; stable over reboots.

    The system's own id (``/etc/machine-id``, IOPlatformUUID, MachineGuid; else the hardware
    address) is hashed with a domain string: it is confidential (machine-id(5)) and never sent.
    """
    system_id = _first_line("/etc/machine-id") or _first_line("/var/lib/dbus/machine-id")
    if sys.platform == "darwin":
        text = _output("ioreg", "-rd1", "-c", "IOPlatformExpertDevice")
        _, _, rest = text.partition(b'"IOPlatformUUID" = "')
        system_id = rest.partition(b'"')[0]
    elif sys.platform == "win32":
        system_id = _machine_guid()
    if len(system_id) < 16:  # absent, empty or "uninitialized" (first boot, containers)
        system_id = b"node %012x" % uuid.getnode()
    return _hash("warpgate machine v1", system_id)


def stack_id() -> bytes:
    """Return 16 bytes that identify this machine's network stack until the next boot.

    Two nodes with equal stack ids reach each other over loopback: the same machine id, the same
    boot (cloned machines share their machine id) and on Linux the same network namespace (two
    containers share machine and boot).
    """
    boot, namespace = b"", b""
    if sys.platform == "linux":
        boot = _first_line("/proc/sys/kernel/random/boot_id")
        with suppress(OSError):
            info = Path("/proc/self/ns/net").stat()
            namespace = b"%d:%d" % (info.st_dev, info.st_ino)
    elif sys.platform == "darwin":
        boot = _output("sysctl", "-n", "kern.bootsessionuuid").strip()
    return _hash("warpgate stack v1", machine_id(), boot, namespace)[:16]


def default_port(machine: bytes) -> int:
    """Return the listening port that belongs to a machine id, 10,000 … 29,999."""
    digest = _hash("warpgate port v1", machine)
    return PORT_RANGE[int.from_bytes(digest[:8], "big") % len(PORT_RANGE)]


def _hash(domain: str, *parts: bytes) -> bytes:
    """Hash the parts under a domain, each with its length so that no two lists look alike."""
    state = hashlib.sha256(domain.encode("ascii"))
    for part in parts:
        state.update(len(part).to_bytes(4, "big") + part)
    return state.digest()


def _first_line(path: str) -> bytes:
    with suppress(OSError), Path(path).open("rb") as file:
        return file.readline(256).strip()
    return b""


def _output(*command: str) -> bytes:
    """Return what a command of the system prints; empty when it fails."""
    import subprocess  # not needed on Linux, and slow to import

    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            command, capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return b""
    return done.stdout


def _machine_guid() -> bytes:
    if sys.platform == "win32":
        import winreg

        access = winreg.KEY_READ | winreg.KEY_WOW64_64KEY  # a 32-bit Python sees another branch
        with (
            suppress(OSError),
            winreg.OpenKey(
                winreg.HKEY_LOCAL_MACHINE, r"SOFTWARE\Microsoft\Cryptography", 0, access
            ) as key,
        ):
            return str(winreg.QueryValueEx(key, "MachineGuid")[0]).encode()
    return b""
