"""Policies by name, by class where that is enough, and not at all otherwise."""

from __future__ import annotations

import pytest

from fastgen_jax.errors import ReplayError
from fastgen_jax.observe.policy_data import policy_from_data, policy_to_data
from fastgen_jax.scheduling.policy import POLICIES, Deadlines, Fcfs


class WithAnArgument(Fcfs):
    """Can't be made without one."""

    def __init__(self, weight: float) -> None:
        self.weight = weight


class Unlike(Fcfs):
    """Its state can't be compared."""

    def __init__(self) -> None:
        self.key = lambda: 0


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_names(name: str) -> None:
    data = policy_to_data(name)
    assert data == {"name": name}
    assert type(policy_from_data(data)) is POLICIES[name]


def test_a_class_without_arguments() -> None:
    data = policy_to_data(Deadlines())
    assert data == {"import": "fastgen_jax.scheduling.policies.deadlines:Deadlines"}
    assert isinstance(policy_from_data(data), Deadlines)


@pytest.mark.parametrize(
    "policy",
    [Deadlines(min_prompt_tokens=3), WithAnArgument(2.0), Unlike()],
    ids=lambda policy: type(policy).__name__,
)
def test_an_object_that_its_class_does_not_tell(policy: Fcfs) -> None:
    data = policy_to_data(policy)
    assert data == {"object": repr(policy)}
    with pytest.raises(ReplayError, match="policy="):
        policy_from_data(data)


def test_a_policy_that_has_learned_something_is_no_new_one() -> None:
    class Step:
        now = 1.0
        last_num_tokens = 3
        decoding = ()

    policy = Deadlines()
    policy.compose(Step())  # type: ignore[arg-type]
    assert "object" in policy_to_data(policy)


def test_a_class_of_a_function_cannot_be_found_again() -> None:
    class Local(Fcfs):
        pass

    assert "object" in policy_to_data(Local())


@pytest.mark.parametrize(
    "name", ["no.such.module:Policy", "fastgen_jax.errors:Nothing", "json:loads", "json"]
)
def test_an_import_that_fails_is_named(name: str) -> None:
    with pytest.raises(ReplayError, match=name):
        policy_from_data({"import": name})
