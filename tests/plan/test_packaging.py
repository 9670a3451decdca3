"""The compiler's packages: pinned, hashed, Linux only, and of the same version as jax."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements/aot.txt").read_text()
LINES = [
    line
    for line in LOCK.replace("\\\n", " ").splitlines()
    if line and not line.lstrip().startswith("#")
]


def test_the_compiler_is_pinned_hashed_and_for_linux_alone() -> None:
    assert len(LINES) >= 7
    for line in LINES:
        assert re.match(r"[a-z0-9-]+==[\w.]+ ; ", line), line
        assert "sys_platform == 'linux'" in line, line
        assert "--hash=sha256:" in line, line


def test_the_plugin_is_of_jaxs_own_version() -> None:
    base = (ROOT / "requirements/base.txt").read_text()
    (version,) = re.findall(r"^jax==(\S+)", base, re.MULTILINE)
    for package in ("jax-cuda13-plugin", "jax-cuda13-pjrt"):
        assert f"{package}=={version} " in LOCK


def test_the_extra_asks_for_all_that_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = {re.split(r"[><=; ]", item)[0] for item in project["optional-dependencies"]["plan"]}
    pinned = {line.split("==")[0] for line in LINES} - {"jax-cuda13-pjrt"}  # the plugin brings it
    assert pinned == extra - {"matplotlib"}
