"""Iteration-level scheduling: whole prompts beside everybody's next token."""

from __future__ import annotations

from fastgen_jax.scheduling.policies.arrival import Fcfs


class IterationLevel(Fcfs):
    """Every decode runs in every step, and new prompts join whole, first come, first served.

    The scheme of Orca (Yu et al., OSDI 2022), but for its reservation of memory for the longest
    output: blocks are taken as tokens come. A step with a prompt is as long as the prompt.
    """

    whole_prompts = True
