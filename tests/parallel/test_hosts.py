"""Two processes that share a model: the tokens of one, and no hang when one dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("one_of_two_hosts.py")
MODEL = ROOT / "tests" / "references" / "families" / "gemma3"
# Within this time the loss of a host must be known.
LIMIT_SECONDS = 30
READY_SECONDS = 120
ENDLESS, FEW = 200, 12


class Host:
    """A process of the program, and what it has printed."""

    def __init__(self, output: Path, port: int, index: str, count: int, *changes: str) -> None:
        devices = 4 if index == "alone" else 2
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
            "--xla_backend_optimization_level=0",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        self.output = output / f"host {index}"
        arguments = [str(port), index, str(MODEL), str(count), *changes]
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", str(PROGRAM), *arguments],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def printed(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while text not in self.printed:
            assert self.process.poll() is None, self.printed[-4000:]
            assert time.monotonic() < deadline, self.printed[-4000:]
            time.sleep(0.1)

    def end(self, seconds: float = READY_SECONDS) -> int:
        """The exit status; the test fails where it takes longer."""
        return self.process.wait(timeout=seconds)


@pytest.fixture
def port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """The processes to end with the test."""
    started: list[Host] = []
    yield started
    for host in started:
        host.process.kill()
        host.process.wait()


def test_two_processes_give_the_tokens_of_one(tmp_path: Path, port: int, hosts: list[Host]) -> None:
    hosts += [Host(tmp_path, port, index, FEW) for index in ("0", "1", "alone")]
    assert [host.end() for host in hosts] == [0, 0, 0], hosts[0].printed[-4000:]
    together, alone = (json.loads(hosts[i].printed.splitlines()[-1]) for i in (0, 2))
    assert together == alone
    assert len({token for tokens in alone for token in tokens}) > 8


@pytest.mark.slow
@pytest.mark.parametrize(("dies", "message"), [("1", "host 1 is gone"), ("0", "host 0 is gone")])
def test_the_end_of_a_host_is_told_by_the_other_in_time(
    dies: str, message: str, tmp_path: Path, port: int, hosts: list[Host]
) -> None:
    hosts += [Host(tmp_path, port, index, ENDLESS) for index in ("0", "1")]
    hosts[0].wait_for("ready")
    time.sleep(0.3)  # in the middle of the generation
    victim, survivor = hosts if dies == "0" else hosts[::-1]
    victim.process.send_signal(signal.SIGKILL)
    start = time.monotonic()
    assert survivor.end(LIMIT_SECONDS) == 3, survivor.printed[-4000:]
    assert message in survivor.printed
    print(f"told after {time.monotonic() - start:.1f} s")


@pytest.mark.slow
def test_a_host_that_stops_is_told_in_time(tmp_path: Path, port: int, hosts: list[Host]) -> None:
    """It doesn't end, so nobody hangs up."""
    hosts += [Host(tmp_path, port, index, ENDLESS) for index in ("0", "1")]
    hosts[0].wait_for("ready")
    hosts[1].process.send_signal(signal.SIGSTOP)
    assert hosts[0].end(LIMIT_SECONDS) == 3, hosts[0].printed[-4000:]
    assert "host 1 is gone: silent for 10 s" in hosts[0].printed


def test_hosts_with_other_settings_are_refused_on_both_sides(
    tmp_path: Path, port: int, hosts: list[Host]
) -> None:
    hosts += [
        Host(tmp_path, port, "0", FEW),
        Host(tmp_path, port, "1", FEW, "max_model_len=128"),
    ]
    assert [host.end() for host in hosts] == [3, 3]
    for host in hosts:
        assert "ConfigError: max_model_len='256': host 0 has 256, another host 128" in host.printed
