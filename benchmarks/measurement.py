"""A results file: what was measured, the settings, and the machine it was measured on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastgen_jax.bench.machine import load_average, machine_facts


def write_measurement(
    out: Path,
    *,
    settings: Mapping[str, object],
    load_at_start: float,
    numbers: Mapping[str, object],
) -> None:
    """Writes JSON with the machine's facts, the load before and after, settings and numbers."""
    content: dict[str, Any] = {
        "machine": asdict(machine_facts()),
        "load_average": {"start": load_at_start, "end": load_average()},
        "settings": dict(settings),
        **numbers,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
