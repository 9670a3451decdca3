"""A caller's prompt as plain token ids."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from fastgen_jax.errors import InvalidRequestError


def plain_token_ids(prompt_token_ids: Iterable[int]) -> tuple[int, ...]:
    """The token ids as Python's own ints; those of numpy count as ints, booleans don't.

    Raises:
        InvalidRequestError: something in it is no token id.
    """
    try:
        token_ids = tuple(prompt_token_ids)
    except TypeError:
        raise _no_token_ids(prompt_token_ids) from None
    if {int}.issuperset(map(type, token_ids)):
        return token_ids
    plain: list[int] = []
    for token_id in token_ids:
        try:
            plain.append(operator.index(token_id))
        except TypeError:
            raise _no_token_ids(token_id) from None
        if isinstance(token_id, bool):
            raise _no_token_ids(token_id)
    return tuple(plain)


def _no_token_ids(value: object) -> InvalidRequestError:
    return InvalidRequestError(
        "is no token id", field="prompt_token_ids", value=value, remedy="use a sequence of ints"
    )
