"""Hub repositories: downloaded, else found among earlier downloads, else a clear error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen_jax.errors import ConfigError
from fastgen_jax.models.weights.hub import fetch_from_hub

REPOSITORY = "org/name"


class Hub:
    """Stands for huggingface_hub: fails online, offline, or not at all."""

    def __init__(self, directory: Path, *, online: bool, kept: bool) -> None:
        self.directory = directory
        self.online = online
        self.kept = kept
        self.patterns: list[str] = []

    def snapshot(
        self,
        repo_id: str,
        *,
        cache_dir: Path | None,
        allow_patterns: list[str],
        local_files_only: bool,
    ) -> str:
        self.patterns = allow_patterns
        if not (self.kept if local_files_only else self.online):
            raise RuntimeError(f"no {'copy' if local_files_only else 'route'} for {repo_id}\nmore")
        return str(self.directory)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(("online", "kept"), [(True, True), (True, False), (False, True)])
def test_found_online_or_kept(online, kept, directory):
    hub = Hub(directory, online=online, kept=kept)
    assert fetch_from_hub(REPOSITORY, snapshot=hub.snapshot) == directory
    assert "tokenizer.json" in hub.patterns
    assert not any("bin" in pattern for pattern in hub.patterns)


def test_found_nowhere(directory):
    hub = Hub(directory, online=False, kept=False)
    with pytest.raises(ConfigError, match=r"model='org/name'.*no route for org/name\).*network"):
        fetch_from_hub(REPOSITORY, snapshot=hub.snapshot)


def test_repository_without_config(tmp_path):
    hub = Hub(tmp_path, online=True, kept=True)
    with pytest.raises(ConfigError, match=r"no config\.json.*\.gguf"):
        fetch_from_hub(REPOSITORY, snapshot=hub.snapshot)


SCRIPT = """
import sys
from pathlib import Path
from fastgen_jax.errors import ConfigError
from fastgen_jax.models.sources import resolve_model
try:
    print(resolve_model("org/name", cache_dir=Path(sys.argv[1])))
except ConfigError as error:
    print("ConfigError", error)
"""


def offline(cache: Path) -> str:
    """What resolving org/name prints with HF_HUB_OFFLINE set, by the real huggingface_hub."""
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    command = [sys.executable, "-c", SCRIPT, str(cache)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_offline_with_the_real_library(tmp_path):
    assert offline(tmp_path).startswith("ConfigError model='org/name': ")
    commit = "0123456789abcdef0123456789abcdef01234567"
    kept = tmp_path / "hub" / "models--org--name"
    snapshot = kept / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    assert offline(tmp_path) == str(snapshot)
