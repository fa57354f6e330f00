"""What ``warpgate doctor`` says: one finding for each thing it looked at; PURE."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        level: ``ok``, ``warn`` or ``fail``.
        subject: what was looked at.
        text: what was found.
        mend: what to do about it; empty when nothing is to be done.

    """

    level: str
    subject: str
    text: str
    mend: str = ""

    def __str__(self) -> str:
        tail = f"\n      → {self.mend}" if self.mend else ""
        return f"{self.level:<5} {self.subject}: {self.text}{tail}"

    def as_dict(self) -> dict[str, str]:
        """Return the finding for JSON."""
        return asdict(self)
