"""Several hosts, each with some of the devices: joining them, and what they agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from fastgen_jax.errors import ConfigError

_HOSTS_TEXT_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """This host's place among those that share a model.

    Attributes:
        count: hosts, a process each.
        index: this one; host 0 leads.
    """

    count: int
    index: int

    @property
    def is_leader(self) -> bool:
        """Whether requests come in here."""
        return self.index == 0


def join_hosts(
    coordinator: str | None = None, *, num_hosts: int | None = None, index: int | None = None
) -> Hosts:
    """The hosts, once all of them are there; afterwards jax knows the devices of all.

    To be called on every host, before jax is used. Under SLURM, Open MPI and Kubernetes everything
    is found; elsewhere everything must be given.

    Args:
        coordinator: "address:port" of host 0, with a port that is free there.
        num_hosts: hosts.
        index: which of them this one is.

    Raises:
        ConfigError: nothing is given and nothing found, or only a part.
    """
    given = (coordinator, num_hosts, index)
    if None in given and given != (None, None, None):
        raise ConfigError(
            "coordinator, num_hosts and index go together",
            field="hosts",
            value=given,
            remedy="give all three, or none under SLURM, Open MPI or Kubernetes",
        )
    # Without it jax ends the process when another host dies, before anybody can tell why.
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(coordinator, num_hosts, index)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"the hosts can't be found: {error}",
            field="hosts",
            value=given,
            remedy='give coordinator="address:port", num_hosts and index',
        ) from error
    return current_hosts()


def leave_hosts() -> None:
    """Be alone again; the devices of the others are out of reach."""
    jax.distributed.shutdown()


def current_hosts() -> Hosts:
    """The hosts that have been joined; this one alone otherwise."""
    return Hosts(count=jax.process_count(), index=jax.process_index())


def least_of_all_hosts(value: int) -> int:
    """The smallest of the values that all hosts call this with; the value itself on one host."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.asarray(value, np.int64)).min())


def text_of_leader(text: str) -> str:
    """What host 0 passes, on every host."""
    data = np.frombuffer(text.encode().ljust(_HOSTS_TEXT_BYTES), np.uint8)
    sent: Any = multihost_utils.broadcast_one_to_all(data)
    return np.asarray(sent).tobytes().decode().strip()


def on_all_devices(values: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Values that every host has, as one array that lies whole on every device."""
    here = sharding.addressable_devices
    shards = [jax.device_put(values, device) for device in here]
    return jax.make_array_from_single_device_arrays(values.shape, sharding, shards)
