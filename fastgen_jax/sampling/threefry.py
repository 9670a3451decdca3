"""Counter-based random words: a pure function of key and counter, the same in numpy and JAX."""

from __future__ import annotations

from typing import Any

KEY_PARITY = 0x1BD11BDA
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry2x32(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """Two random uint32 words per element of the counters; every input is a uint32 array.

    Twenty rounds of Threefry-2x32. Written out here, and not taken from jax.random, so that a
    seed gives the same tokens under every JAX version and setting, and in the numpy reference.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ KEY_PARITY)
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x = x + y
            y = ((y << rotation) | (y >> (32 - rotation))) ^ x
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + (group + 1)
    return x, y


def uniform_pair(seed: tuple[Any, Any], position: Any) -> tuple[Any, Any]:
    """Two integers in [0, 2**24) per (seed, position), as uint32: 24 bits are exact in float32.

    Args:
        seed: high and low words of the request's stream, uint32 arrays.
        position: the place of the drawn token in the request, a uint32 array.
    """
    first, second = threefry2x32(seed, (position, position ^ position))
    return first >> 8, second >> 8
