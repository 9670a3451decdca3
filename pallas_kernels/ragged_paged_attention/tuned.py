"""Sizes that were measured to be best, in a data file for each kind of GPU."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pallas_kernels.ragged_paged_attention.config import (
    HopperConfig,
    KernelConfig,
    SplitRule,
    TritonConfig,
)
from pallas_kernels.ragged_paged_attention.shape import AttentionShape
from pallas_kernels.target import Implementation

TUNED_FOLDER = Path(__file__).parent / "tuned"
_CONFIGS = {"mosaic_gpu": HopperConfig, "triton": TritonConfig}


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedEntry:
    """The best sizes for one shape.

    Attributes:
        shape: the key, together with the implementation, which is the class of ``config``: an entry
            serves a call only if all of the shape's fields are the same.
        config: the sizes.
        seconds: median of one call with them.
        heuristic_seconds: median of one call with the sizes that the heuristic gives.
    """

    shape: AttentionShape
    config: KernelConfig
    seconds: float
    heuristic_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedFile:
    """What was measured on one kind of GPU.

    Attributes:
        device_kind: as jax names the device.
        versions: of the packages that compiled the kernels.
        entries: one for a shape and implementation.
    """

    device_kind: str
    versions: dict[str, str]
    entries: tuple[TunedEntry, ...]

    def find(self, shape: AttentionShape, implementation: Implementation) -> KernelConfig | None:
        """The sizes for exactly this shape; None where nobody measured it."""
        kind = _CONFIGS.get(implementation)
        for entry in self.entries:
            if entry.shape == shape and type(entry.config) is kind:
                return entry.config
        return None

    def with_entry(self, entry: TunedEntry) -> TunedFile:
        """The file with an entry more, in place of the one with the same key."""
        key = (entry.shape, type(entry.config))
        others = (old for old in self.entries if (old.shape, type(old.config)) != key)
        return TunedFile(
            device_kind=self.device_kind, versions=self.versions, entries=(*others, entry)
        )

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        data = {
            "device_kind": self.device_kind,
            "versions": self.versions,
            "entries": [_to_data(entry) for entry in self.entries],
        }
        fresh = path.with_suffix(".part")
        fresh.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        fresh.replace(path)


def read_tuned(path: Path) -> TunedFile:
    """The file at ``path``.

    Raises:
        ValueError: it isn't what ``save`` writes; the message names the file and the remedy.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return TunedFile(
            device_kind=str(data["device_kind"]),
            versions=dict(data["versions"]),
            entries=tuple(_from_data(entry) for entry in data["entries"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: no file of tuned sizes ({type(error).__name__}: {error}); delete it, or make "
            "it anew with python -m pallas_kernels.autotune"
        ) from error


def tuned_config(
    shape: AttentionShape,
    device_kind: str,
    implementation: Implementation,
    *,
    folder: Path = TUNED_FOLDER,
) -> KernelConfig | None:
    """Sizes that were measured for exactly this shape on this kind of device; None where none were.

    Raises:
        ValueError: there is a file for the device, but it is broken.
    """
    path = tuned_path(device_kind, folder=folder)
    return read_tuned(path).find(shape, implementation) if path.is_file() else None


def tuned_path(device_kind: str, *, folder: Path = TUNED_FOLDER) -> Path:
    """Where the sizes for a kind of device are filed: its name in lower case, with dashes."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_kind.lower()).strip("-")
    return folder / f"{slug or 'unnamed'}.json"


def _to_data(entry: TunedEntry) -> dict[str, Any]:
    return {
        "shape": asdict(entry.shape),
        "implementation": next(
            name for name, kind in _CONFIGS.items() if type(entry.config) is kind
        ),
        "config": asdict(entry.config),
        "seconds": entry.seconds,
        "heuristic_seconds": entry.heuristic_seconds,
    }


def _from_data(data: dict[str, Any]) -> TunedEntry:
    sizes = dict(data["config"])
    splits = SplitRule(**sizes.pop("splits"))
    return TunedEntry(
        shape=AttentionShape(**data["shape"]),
        config=_CONFIGS[data["implementation"]](splits=splits, **sizes),
        seconds=float(data["seconds"]),
        heuristic_seconds=float(data["heuristic_seconds"]),
    )
