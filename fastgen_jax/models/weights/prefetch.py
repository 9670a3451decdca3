"""Weights read on a thread of their own while the caller still has other things to do."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Queue
from threading import Thread

import numpy as np

from fastgen_jax.errors import ConfigError
from fastgen_jax.models.weights.checkpoint import Checkpoint


class PrefetchedTensors:
    """A checkpoint's tensors in one dtype; reading begins at once, iterating takes them over.

    All of them are kept until they are taken, so at most the whole model is in memory.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: np.dtype) -> None:
        self._checkpoint = checkpoint
        self._dtype = np.dtype(dtype)
        self._queue: Queue[tuple[str, np.ndarray] | BaseException | None] = Queue()
        self._thread = Thread(target=self._read, name="fastgen-prefetch", daemon=True)
        self._thread.start()

    def __call__(self, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
        """The tensors, once, by name.

        Raises:
            ConfigError: another dtype than the one being read.
            CheckpointError: what reading raised.
        """
        if np.dtype(dtype) != self._dtype:
            raise ConfigError(f"the weights are read as {self._dtype}", field="dtype", value=dtype)
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def join(self) -> None:
        """Wait until nothing reads the checkpoint any more."""
        self._thread.join()

    def _read(self) -> None:
        try:
            for item in self._checkpoint.tensors(self._dtype):
                self._queue.put(item)
            self._queue.put(None)
        except BaseException as error:  # belongs to whoever iterates
            self._queue.put(error)
