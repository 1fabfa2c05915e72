"""The policy run again over an episode that was played, in several variants at once.

T steps of the episode, t of them at once, V variants, P parameters of the actions' distribution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from expire_span_rl.policies import ActorCritic, Memory
from expire_span_rl.viewer.play import CHUNK, Episode, tensors_of


@torch.no_grad()
def replay(
    policy: ActorCritic,
    observations: Mapping[str, Tensor],
    memory: Memory | None = None,
    first_step: int = 0,
    *,
    removals: Sequence[int] | None = None,
    memories_before: Sequence[int] = (),
) -> Iterator[tuple[int, Tensor, Tensor, Memory | None]]:
    """Runs the policy again over observations [t,V,...] of V episodes, from step `first_step` on.

    memory: what it begins with; None at the start of an episode. removals: for each variant the step whose observation
    leaves no memory in any layer, -1 for none. Yields the number of each step, parameters [V,P] and values [V]. For the
    steps of `memories_before` it also yields the memory that the step began with, else None.
    """
    steps, count = next(iter(observations.values())).shape[:2]
    removed_step = torch.full((count,), -1) if removals is None else torch.as_tensor(removals)
    removed_step = removed_step.to(policy.device)
    pauses = {*memories_before, *(removed_step + 1).tolist()}
    memory = policy.initial_memory(count) if memory is None else memory
    acting = policy.begin(memory, CHUNK)
    for t in range(first_step, first_step + steps):
        if t > first_step and (acting.full or t in pauses):
            memory = acting.memory()
            for i, layer in enumerate(memory.layers):
                # Right after the step: a block that these slots are merged into later has the number of its last one.
                memory = memory.remove_slots(i, (layer.birth == t - 1) & (removed_step == t - 1)[:, None])
            acting = policy.begin(memory, CHUNK)
        start = torch.full((count,), t == 0, device=policy.device)
        observation = {key: value[t - first_step] for key, value in observations.items()}
        params, values = policy.step(observation, acting, start)
        yield t, params, values, memory if t in memories_before else None


def repeat_episode(
    policy: ActorCritic, episode: Episode, count: int, *, first_step: int, end_step: int
) -> tuple[int, dict[str, Tensor], Memory]:
    """`count` equal variants of an episode up to `end_step`, to be changed.

    Gives the step to begin at (the latest one with a memory that is not after `first_step`), the observations
    [t,count,...] from there on, and the memory at that step.
    """
    begin = max(step for step in episode.memories if step <= first_step)
    observations = tensors_of(policy, episode.observations[begin:end_step])
    repeated = {key: value.expand(-1, count, *value.shape[2:]) for key, value in observations.items()}
    rows = torch.zeros(count, dtype=torch.int64, device=policy.device)
    return begin, repeated, episode.memories[begin].rows(rows)
