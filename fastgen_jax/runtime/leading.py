"""An executor whose devices belong to several hosts: the leader's, and the others' loop."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping

import numpy as np

from fastgen_jax.batching import StepResults, StepShape
from fastgen_jax.errors import HostLostError
from fastgen_jax.parallel.hosts import Hosts, leave_hosts, text_of_leader
from fastgen_jax.runtime.executor import DeviceStep, Executor
from fastgen_jax.runtime.host_channel import Follower, Leader, follow, lead, listen

_WRITE_ROW, _LAUNCH = range(2)
_COMMAND = struct.Struct("!BII")
_POLL_SECONDS = 2e-4
# A collective fails where a host dies, perhaps before its connection is known to be closed.
_BLAME_SECONDS = 5.0


class LeadingExecutor:
    """Runs on this host what it tells all others to run, in the same order."""

    def __init__(self, executor: Executor, leader: Leader) -> None:
        self._executor = executor
        self._leader = leader

    @property
    def shapes(self) -> tuple[StepShape, ...]:
        """Every shape that was declared, ascending."""
        return self._executor.shapes

    def write_row(self, row: int, packed: np.ndarray) -> None:
        """Put a request's settings and tokens into a device row, before the next launch."""
        self._leader.send(_COMMAND.pack(_WRITE_ROW, row, 0) + packed.tobytes())
        self._executor.write_row(row, packed)

    def launch(self, shape: StepShape, packed: np.ndarray) -> LeadingStep:
        """Start a step on all hosts and return at once."""
        self._leader.send(_COMMAND.pack(_LAUNCH, *shape) + packed.tobytes())
        return LeadingStep(self._executor.launch(shape, packed), self._leader)

    def close(self) -> None:
        """Free every device buffer of all hosts."""
        self._leader.close()
        self._executor.close()


class LeadingStep:
    """A step that all hosts run."""

    def __init__(self, step: DeviceStep, leader: Leader) -> None:
        self._step = step
        self._leader = leader

    def read(self) -> StepResults:
        """The step's results; HostLostError where a host is gone, without waiting for it."""
        try:
            while not self._step.is_ready:
                self._leader.check()
                time.sleep(_POLL_SECONDS)
            return self._step.read()
        except HostLostError:
            raise
        except Exception:
            self._leader.wait_for_loss(_BLAME_SECONDS)
            raise


def lead_others(facts: Mapping[str, str], hosts: Hosts, *, timeout: float) -> Leader:
    """The leader's end of the connections to all other hosts, which have the same facts.

    Raises:
        ConfigError: a host has other facts.
        HostLostError: a host doesn't come.
    """
    listener = listen()
    text_of_leader(f"{socket.gethostname()}:{listener.getsockname()[1]}")
    return lead(listener, facts, count=hosts.count, timeout=timeout)


def follow_leader(facts: Mapping[str, str], hosts: Hosts, *, timeout: float) -> Follower:
    """A follower's end of the connection to the leader, which has the same facts.

    Raises:
        ConfigError: the leader has other facts.
        HostLostError: the leader isn't there.
    """
    return follow(text_of_leader(""), hosts.index, facts, timeout=timeout)


def run_commands(executor: Executor, follower: Follower) -> None:
    """Run what the leader says until it closes; then leave the hosts, and let go of the leader.

    Raises:
        HostLostError: the leader is gone.
    """
    try:
        while (data := follower.receive()) is not None:
            kind, first, second = _COMMAND.unpack_from(data)
            packed = np.frombuffer(data, np.int32, offset=_COMMAND.size)
            if kind == _WRITE_ROW:
                executor.write_row(first, packed)
            else:
                executor.launch(StepShape(first, second), packed)
        executor.close()
        # Before the leader, whose process coordinates: without it leaving would fail.
        leave_hosts()
    except HostLostError:
        raise
    except Exception as error:
        follower.fail(f"{type(error).__name__}: {error}")
        raise
    finally:
        follower.close()
