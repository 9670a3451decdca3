"""A checkpoint's description, read field by field so that nothing in it is overlooked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from fastgen_jax.errors import CheckpointError, UnsupportedModelError


class Fields:
    """Typed access to a mapping that remembers which fields were read.

    ``where`` names the origin in errors, for example "config.json", and ``prefix`` begins the names
    of an inner object's fields there. Every getter treats a field
    whose value is None as absent. Call ``refuse_unread`` last.
    """

    def __init__(self, values: Mapping[str, object], *, where: str, prefix: str = "") -> None:
        self._values = values
        self._where = where
        self._prefix = prefix
        self._read: set[str] = set()

    def get(self, name: str) -> object:
        """Return the raw value, or None when the field is absent."""
        self._read.add(name)
        return self._values.get(name)

    @property
    def where(self) -> str:
        """The origin in errors."""
        return self._where

    def was_read(self, name: str) -> bool:
        """Return whether somebody asked for the field."""
        return name in self._read

    def is_stated(self, name: str) -> bool:
        """Return whether the field is there, be it None."""
        return name in self._values

    def group(self, name: str) -> Fields | None:
        """Return an object's own fields, named "group.field" in errors, or None when absent."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._malformed(name, value, "an object")
        return Fields(value, where=self._where, prefix=f"{self._prefix}{name}.")

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string; CheckpointError if absent and no default."""
        value = self._value_or_default(name, default)
        if not isinstance(value, str):
            raise self._malformed(name, value, "a string")
        return value

    def items(self, name: str) -> list[object] | None:
        """Return a list, or None when absent."""
        value = self.get(name)
        if value is not None and not isinstance(value, list):
            raise self._malformed(name, value, "a list")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a list of finite numbers; CheckpointError if absent."""
        value = self._value_or_default(name, None)
        values = value if isinstance(value, list) else [None]
        found = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
        if len(found) != len(values):
            raise self._malformed(name, value, "a list of finite numbers")
        return tuple(found)

    def unsupported(self, name: str, value: object, meaning: str) -> UnsupportedModelError:
        """Return the error about a value that asks for mathematics that isn't implemented."""
        return UnsupportedModelError(
            f"{meaning} isn't implemented ({self._where})",
            field=self._prefix + name,
            value=value,
            remedy="use another model",
        )

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1) -> int:
        """Return an integer of at least ``minimum``; CheckpointError if absent and no default."""
        value = self._value_or_default(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._malformed(name, value, "an integer")
        if value < minimum:
            raise self._malformed(name, value, f"an integer of at least {minimum}")
        return value

    def positive_number(self, name: str, default: float | None = None) -> float:
        """Return a finite number above zero; CheckpointError if absent and no default."""
        value = self._value_or_default(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._malformed(name, value, "a number")
        if not (math.isfinite(value) and value > 0):
            raise self._malformed(name, value, "a finite number above zero")
        return float(value)

    def optional_number(self, name: str, default: float | None) -> float | None:
        """Return a finite number above zero, None where that is stated, else ``default``."""
        if not self.is_stated(name):
            return default
        return None if self.get(name) is None else self.positive_number(name)

    def flag(self, name: str, default: bool) -> bool:
        """Return a boolean; CheckpointError for any other type."""
        value = self._value_or_default(name, default)
        if not isinstance(value, bool):
            raise self._malformed(name, value, "true or false")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Return one id or a list of ids as a tuple, empty when absent."""
        value = self.get(name)
        ids: list[int] = []
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int) and not isinstance(item, bool) and item >= 0:
                ids.append(item)
            elif value is not None:
                raise self._malformed(name, value, "a token id or a list of token ids")
        return tuple(ids)

    def token_id(self, name: str) -> int | None:
        """Return a token id, or None when absent."""
        ids = self.token_ids(name)
        if len(ids) > 1:
            raise self._malformed(name, list(ids), "one token id")
        return ids[0] if ids else None

    def require(self, name: str, allowed: Collection[object], meaning: str) -> None:
        """Raise UnsupportedModelError unless the field is absent or has an allowed value."""
        value = self.get(name)
        if value is None or any(_same(value, choice) for choice in allowed):
            return
        expected = " or ".join(repr(choice) for choice in allowed) or "absent"
        raise UnsupportedModelError(
            f"{meaning} isn't implemented ({self._where})",
            field=self._prefix + name,
            value=value,
            remedy=f"use a model where it is {expected}",
        )

    def refuse_unread(self, harmless: Collection[str], prefixes: tuple[str, ...] = ()) -> None:
        """Raise UnsupportedModelError for the first field not read and not known as harmless.

        A field that is None or begins with one of ``prefixes`` passes too.
        """
        for name, value in self._values.items():
            known = name in self._read or name in harmless or name.startswith(prefixes)
            if not known and value is not None:
                raise UnsupportedModelError(
                    f"this engine doesn't know the field, so it may change the model's "
                    f"mathematics ({self._where})",
                    field=self._prefix + name,
                    value=value,
                    remedy="use a supported model, or delete the field from the description "
                    "if it is known to change nothing",
                )

    def _value_or_default(self, name: str, default: object) -> object:
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(
                f"the field is missing from {self._where}",
                field=self._prefix + name,
                value=None,
                remedy="download the checkpoint again or add the field",
            )
        return value

    def _malformed(self, name: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(
            f"must be {expected} ({self._where})",
            field=self._prefix + name,
            value=value,
            remedy="download the checkpoint again or correct the field",
        )


def _same(value: object, choice: object) -> bool:
    # True == 1 in Python, but a flag where a number belongs is another meaning.
    return isinstance(value, bool) == isinstance(choice, bool) and value == choice
