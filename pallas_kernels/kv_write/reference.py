"""The page write in plain XLA: an in-place scatter when the pages are donated."""

from __future__ import annotations

from jaxtyping import Array, Float, Int


def write_kv(
    pages: Float[Array, "N K S D"],
    values: Float[Array, "T K D"],
    page_ids: Int[Array, "T"],
    slots: Int[Array, "T"],
) -> Float[Array, "N K S D"]:
    """Pages with token t's values at ``[page_ids[t], :, slots[t]]``.

    Tokens that pad the step all name page 0, the null page: what it holds is never read unmasked.
    """
    return pages.at[page_ids, :, slots].set(values.astype(pages.dtype), mode="promise_in_bounds")
