"""Windows of tensors: what of a tensor one device holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# [first, end) along every axis of a tensor in our layout.
Window = tuple[tuple[int, int], ...]
# (our name, shape) -> the windows of that tensor to read, in order.
WindowsOf = Callable[[str, tuple[int, ...]], Sequence[Window]]


def whole(shape: tuple[int, ...]) -> Window:
    """Return the window that is all of a tensor."""
    return tuple((0, size) for size in shape)


def is_whole(window: Window, shape: tuple[int, ...]) -> bool:
    """Whether a window is all of a tensor."""
    return window == whole(shape)


def window_shape(window: Window) -> tuple[int, ...]:
    """Return the shape of what is in a window."""
    return tuple(end - first for first, end in window)


def whole_tensors(name: str, shape: tuple[int, ...]) -> Sequence[Window]:
    """Return one window for each tensor, all of it."""
    del name
    return (whole(shape),)
