"""How much memory a piece of work took on the host, at its peak."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Resident bytes of this process when the work began; Linux alone counts them so."""

    at_begin: int

    @classmethod
    def begin(cls) -> HostMemory:
        """Counts from here; what was at its peak before is forgotten."""
        _CLEAR.write_text("5", encoding="ascii")  # resets the peak
        return cls(_status_bytes("VmRSS"))

    def peak_growth(self) -> int:
        """Bytes that were resident at the worst moment, beside those at the beginning."""
        return _status_bytes("VmHWM") - self.at_begin

    def growth(self) -> int:
        """Bytes that are resident now, beside those at the beginning."""
        return _status_bytes("VmRSS") - self.at_begin


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")
