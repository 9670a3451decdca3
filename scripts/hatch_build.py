"""Builds the native CPU kernels with the package, where there is a C++ compiler.

They are never required: without a compiler the package is installed all the same, and the engine
computes with XLA.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernelsHook(BuildHookInterface):
    """Compiles into ``pallas_kernels/native/lib`` and makes the wheel one for this platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the wheel is put together."""
        if self.target_name != "wheel":
            return
        builder = _load_builder(Path(self.root) / "pallas_kernels" / "native" / "build.py")
        try:
            # A wheel goes to other machines, an editable install stays on this one.
            kinds = None if version == "editable" else builder.instruction_sets()
            built = builder.build(kinds=kinds)
        except RuntimeError as error:
            self.app.display_warning(f"the native CPU kernels weren't built: {error}")
            return
        if version != "editable":
            build_data["artifacts"] += [str(path.relative_to(self.root)) for path in built]
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            # The kernels know nothing of Python, so any version of it can load them.
            build_data["tag"] = f"py3-none-{platform}"
            build_data["pure_python"] = False


def _load_builder(path: Path) -> ModuleType:
    # By its path: importing the package would import jax, which building doesn't need.
    spec = importlib.util.spec_from_file_location("fastgen_native_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
