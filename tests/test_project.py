"""The scaffolding holds: scripts, pins, extras, and no trace of one machine in the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["scripts/demo", "scripts/test", "scripts/check", "scripts/lock", ".ci/run"]
LOCKS = [
    "requirements/aot.txt",
    "requirements/base.txt",
    "requirements/dev.txt",
    "requirements/uv.txt",
]
BASH = shutil.which("bash") or "/bin/bash"

# Spelt in pieces, so that this file passes its own test.
HOSTS = ["files." + "pythonhosted", "pypi" + ".org/simple", "registry." + "npmjs"]
MACHINE_PATH = re.compile(r"(?<![\w.~}$*-])/(?:work|root|home|Users)/\w")
MACHINE_PATH_ALLOWED = ["/home/" + "linuxbrew/"]  # Homebrew on Linux is there on every machine


def project_files() -> list[Path]:
    """Every file git tracks or would track; a tree without git is walked instead."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    else:
        skipped = {".git", ".venv", "__pycache__", "build", "dist"}
        paths = [p for p in ROOT.rglob("*") if not skipped & set(p.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]


def project_table() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_no_registry_host_and_no_machine_path() -> None:
    found: list[str] = []
    for path in project_files():
        content = path.read_bytes()
        if b"\0" in content:
            continue
        text = content.decode(errors="replace")
        for allowed in MACHINE_PATH_ALLOWED:
            text = text.replace(allowed, "")
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line) or any(host in line for host in HOSTS):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("lock", LOCKS)
def test_requirements_are_pinned_and_hashed(lock: str) -> None:
    logical_lines = (ROOT / lock).read_text().replace("\\\n", " ").splitlines()
    requirements = [line for line in logical_lines if line and not line.lstrip().startswith("#")]
    assert requirements
    for line in requirements:
        assert re.match(r"[a-z0-9][a-z0-9.-]*==[\w.+!]+ ", line), line
        assert "--hash=sha256:" in line, line


def test_dev_pins_are_base_pins() -> None:
    base, dev = (
        set(re.findall(r"^([\w.-]+==\S+)", (ROOT / f"requirements/{kind}.txt").read_text(), re.M))
        for kind in ("base", "dev")
    )
    assert base < dev


@pytest.mark.parametrize("script", [*SCRIPTS, "scripts/lib.sh"])
def test_scripts_are_strict_bash(script: str) -> None:
    lines = (ROOT / script).read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    subprocess.run([BASH, "-n", str(ROOT / script)], check=True)
    if script in SCRIPTS:
        assert os.access(ROOT / script, os.X_OK), "git must hold it as executable"


def test_packaging_facts() -> None:
    project = project_table()
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    assert {"cuda12", "cuda13", "dev"} <= set(extras)
    assert project["requires-python"] == ">=3.12"
    assert project["scripts"] == {"fastgen": "fastgen_jax.cli:main"}
    for package in ("fastgen_jax", "pallas_kernels"):
        assert (ROOT / package / "py.typed").is_file()


def write_python(path: Path, version: str) -> Path:
    """A stub that answers the probe of scripts/lib.sh as a Python of this version would."""
    major, minor = (int(part) for part in version.split("."))
    path.parent.mkdir(parents=True, exist_ok=True)
    answer = f'echo "{version} $0"' if (major, minor) >= (3, 12) else "exit 1"
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A copy of scripts/lib.sh that sees only tmp_path: the system's own places are moved there."""
    text = (ROOT / "scripts/lib.sh").read_text()
    head, body = text.split("# Prints the paths worth probing", 1)
    places = r"(?<=[\s\"])/(opt/|usr/|home/|Library/)"
    copy = tmp_path / "checkout/scripts/lib.sh"
    copy.parent.mkdir(parents=True)
    copy.write_text(
        f"{head}# Prints the paths worth probing{re.sub(places, rf'{tmp_path}/\1', body)}"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/dirname").symlink_to(shutil.which("dirname") or "/usr/bin/dirname")
    return tmp_path


def find_python(machine: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BASH, "-c", 'source "$0" && find_python', str(machine / "checkout/scripts/lib.sh")],
        env={"PATH": str(machine / "bin"), "HOME": str(machine / "user"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "place",
    [
        "bin/python3.12",
        "bin/python3.13",
        "bin/python",
        "user/.pyenv/versions/3.12.1/bin/python",
        "user/miniconda3/envs/jax/bin/python",
        "user/.local/share/uv/python/cpython-3.13.1-linux-x86_64-gnu/bin/python3",
        "opt/homebrew/opt/python@3.12/bin/python3.12",
        "usr/bin/python3.12",
    ],
)
def test_finds_a_python_past_an_older_python3(elsewhere: Path, place: str) -> None:
    write_python(elsewhere / "bin/python3", "3.11")
    wanted = write_python(elsewhere / place, "3.12")
    found = find_python(elsewhere)
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()) == wanted


def test_prefers_the_versions_the_pins_are_tested_with(elsewhere: Path) -> None:
    newer = write_python(elsewhere / "bin/python3", "3.15")
    assert Path(find_python(elsewhere).stdout.strip()) == newer
    tested = write_python(elsewhere / "user/.pyenv/versions/3.12.1/bin/python", "3.12")
    assert Path(find_python(elsewhere).stdout.strip()) == tested


def test_never_builds_the_environment_on_itself(elsewhere: Path) -> None:
    inside = write_python(elsewhere / "checkout/.venv/bin/python3", "3.12").parent
    found = find_python(elsewhere, PATH=f"{inside}:{elsewhere / 'bin'}")
    assert found.returncode != 0


def test_says_what_to_install_where_there_is_none(elsewhere: Path) -> None:
    write_python(elsewhere / "bin/python3", "3.11")
    found = find_python(elsewhere)
    assert found.returncode != 0
    assert found.stdout == ""
    assert "no Python >= 3.12" in found.stderr
    assert "apt install python3.12" in found.stderr
    assert "FASTGEN_PYTHON=" in found.stderr


def test_a_named_python_is_taken_or_refused(elsewhere: Path) -> None:
    write_python(elsewhere / "bin/python3.12", "3.12")
    named = write_python(elsewhere / "mine/python", "3.13")
    found = find_python(elsewhere, FASTGEN_PYTHON=str(named))
    assert Path(found.stdout.strip()) == named

    old = write_python(elsewhere / "mine/old", "3.11")
    refused = find_python(elsewhere, FASTGEN_PYTHON=str(old))
    assert refused.returncode != 0
    assert f"FASTGEN_PYTHON={old}" in refused.stderr
