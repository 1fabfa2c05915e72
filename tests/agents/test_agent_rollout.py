"""The contents of a rollout, against single environments and against the policy acting on one row alone.

T time steps, B environments. The corridors are so short that in every rollout episodes end by doors and by the step
limit.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from agent_cases import make_policy, through_a_file

from expire_span_rl import envs
from expire_span_rl.agents.collector import Collector
from expire_span_rl.agents.rollout import FAR_SEEDS, Rollout, acting_learning_difference, far_seed
from expire_span_rl.policies import KINDS
from expire_span_rl.protocols import is_control

T = 12
B = 6
SEED = 5
SHORT = {"min_length": 3, "max_length": 4, "max_steps": 8}
FIELDS = (
    "episode_start", "actions", "logits", "values", "next_values", "rewards", "terminated", "truncated",
    "reward_outputs",
)  # fmt: skip


def make_collector(
    kind: str = "expire_span", seed: int = SEED, env_kwargs: dict | None = None, **settings
) -> Collector:
    """A collector of rollouts [T,B]. Its policy has random heads and often walks east. settings: of `make_policy`."""
    env = envs.make_vec_env("Corridor-v0", B, **(env_kwargs or SHORT))
    policy = make_policy(env, kind, **{"heads": 0.1, **settings})
    policy.policy_head.bias.data[1] = 1.5
    return Collector(env, policy, T, seed)


def assert_same(left: Rollout, right: Rollout) -> None:
    """To the last bit."""
    for name in FIELDS:
        assert torch.equal(getattr(left, name), getattr(right, name)), name
    assert_same_tensors(left.observation, right.observation)
    assert_same_tensors(left.final_observation, right.final_observation)
    assert all(torch.equal(*pair) for pair in zip(left.final_at, right.final_at, strict=True))
    assert_same_tensors(left.memory.to_tensors(), right.memory.to_tensors())


def assert_same_tensors(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def final_places(rollout: Rollout) -> list[tuple[int, int]]:
    """The step and the environment, (t, b), of each final observation."""
    t, b = rollout.final_at
    return list(zip(t.tolist(), b.tolist(), strict=True))


def is_at(observation: dict[str, torch.Tensor], index: tuple | int, expected: dict) -> bool:
    """Whether `observation`, a batch, has the expected entries at `index`."""
    return all(np.array_equal(observation[key][index].numpy(), value) for key, value in expected.items())


def test_a_rollout_is_what_single_environments_give():
    """Row b is replayed in an environment of its own with seed + b, over three rollouts. Compared are observations,
    rewards, ends and starts, final observations, and the finished episodes in the order of their ends."""
    collector = make_collector()
    rollouts = [collector.collect() for _ in range(3)]
    singles = [envs.make_env("Corridor-v0", **SHORT) for _ in range(B)]
    observations = [env.reset(seed=SEED + b)[0] for b, env in enumerate(singles)]
    start = [True] * B
    returns = [0.0] * B
    steps = [0] * B
    from_earlier_rollout = 0
    for rollout, episodes in rollouts:
        finals = {place: i for i, place in enumerate(final_places(rollout))}
        expected_episodes = []
        expected_finals = []
        for t, b in np.ndindex(T, B):
            assert is_at(rollout.observation, (t, b), observations[b])
            assert bool(rollout.episode_start[t, b]) == start[b]
            observations[b], reward, terminated, truncated, info = singles[b].step(int(rollout.actions[t, b]))
            assert float(rollout.rewards[t, b]) == reward
            assert bool(rollout.terminated[t, b]) == terminated and bool(rollout.truncated[t, b]) == truncated
            start[b] = terminated or truncated
            returns[b] += reward
            steps[b] += 1
            if truncated or (t == T - 1 and not start[b]):
                expected_finals.append((t, b))
                assert is_at(rollout.final_observation, finals[t, b], observations[b])
            if not start[b]:
                continue
            from_earlier_rollout += steps[b] > t + 1
            measured = {"return": returns[b], "steps": steps[b], "is_control": is_control(b, B)}
            expected_episodes.append({**measured, **info})
            observations[b], _ = singles[b].reset()
            returns[b] = 0.0
            steps[b] = 0
        # Truncations come first, then the rollout's end.
        expected_finals.sort(key=lambda place: (not rollout.truncated[place], place))
        assert episodes == expected_episodes and list(finals) == expected_finals
        assert 0 < rollout.truncated.sum() < len(expected_finals) and rollout.terminated.any()
    assert from_earlier_rollout > 3 and {e["return"] for _, episodes in rollouts for e in episodes} == {0, 1}


def stepped_value(collector: Collector, rollout: Rollout, t: int, b: int, following: dict) -> float:
    """The value that a step gives to the observation `following`, if row b's episode goes on after step t."""
    row = torch.tensor([b])
    policy = collector.policy
    acting = policy.begin(rollout.memory.rows(row), t + 2)
    for s in range(t + 1):
        policy.step(
            {key: value[s, row] for key, value in rollout.observation.items()}, acting, rollout.episode_start[s, row]
        )
    following = {key: torch.as_tensor(value) for key, value in following.items()}
    return float(policy.step(following, acting, torch.tensor([False]))[1])


@pytest.mark.parametrize("kind", KINDS)
def test_next_values(kind):
    """Where the episode goes on, it is the next step's value, and at the rollout's end the value of the next
    observation. At a truncation it is the final observation's, with the memory that led to it. Without that memory the
    value would be another."""
    collector = make_collector(kind)
    collector.collect()  # the rollout then begins with memories
    rollout, _ = collector.collect()
    is_over = rollout.terminated | rollout.truncated
    assert torch.equal(rollout.next_values[:-1][~is_over[:-1]], rollout.values[1:][~is_over[:-1]])
    continuing = torch.nonzero(~is_over[-1]).flatten().tolist()
    assert continuing
    for b in continuing:
        following = {key: value[[b]] for key, value in collector.observation.items()}
        expected = stepped_value(collector, rollout, T - 1, b, following)
        assert float(rollout.next_values[-1, b]) == pytest.approx(expected, abs=1e-5)
    errors_without_memory = []
    for i, (t, b) in enumerate(final_places(rollout)):
        final = {key: value[[i]] for key, value in rollout.final_observation.items()}
        expected = stepped_value(collector, rollout, t, b, final)
        assert float(rollout.next_values[t, b]) == pytest.approx(expected, abs=1e-5)
        acting = collector.policy.begin(collector.policy.initial_memory(1), 1)
        _, value = collector.policy.step(final, acting, torch.tensor([True]))
        errors_without_memory.append(abs(float(value) - expected))
    assert errors_without_memory and (max(errors_without_memory) > 1e-2 or not KINDS[kind].stores)


@pytest.mark.parametrize("kind", KINDS)
def test_live_memories_are_those_of_inspect(kind):
    """Mean and maximum, over steps and environments, of the memories visible at each step, per layer. Memories expire
    in the rollout. `live` is empty for a memory without slots."""
    collector = make_collector(kind, env_kwargs={"min_length": 30, "max_length": 40, "max_steps": 35}, layers=2)
    for _ in range(3):
        rollout, _ = collector.collect()
    if rollout.memory.live() is None:
        assert collector.live == {}
        return
    layers = collector.policy.inspect(rollout.observation, rollout.memory, rollout.episode_start)[2]
    counts = [layer.visible.sum(-1) for layer in layers]  # L of [B,T]
    assert collector.live["mean"] == pytest.approx([float(n.float().mean()) for n in counts])
    assert collector.live["max"] == [int(n.max()) for n in counts] and 1 < max(collector.live["max"]) < 35


def test_actions_are_sampled_from_the_softmax():
    """Frequencies of 12,288 draws within four standard deviations of the probabilities 0.1, 0.2, 0.3, 0.4."""
    env = envs.make_vec_env("Corridor-v0", 128, min_length=200)
    policy = make_policy(env, "none")
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    policy.policy_head.bias.data.copy_(probabilities.log())
    rollout, _ = Collector(env, policy, 96, SEED).collect()
    frequency = torch.bincount(rollout.actions.flatten(), minlength=4) / rollout.actions.numel()
    deviation = (probabilities * (1 - probabilities) / rollout.actions.numel()).sqrt()
    assert ((frequency - probabilities).abs() < 4 * deviation).all()


def test_the_kind_draws_again_for_each_rollout():
    """Span dropout draws one number per environment, which is part of the rollout's memory."""
    collector = make_collector(span_model="sigmoid", span_dropout=True)
    numbers = [collector.collect()[0].memory.noise for _ in range(2)]
    assert numbers[0].shape == numbers[1].shape == (B, 1) and not torch.isin(*numbers).any()


def test_rollouts_are_without_noise_where_that_is_asked_for():
    collector = make_collector("transformer_xl", layers=2)
    early, late = (torch.cat([collector.collect(num_noisy)[0].memory.noise for _ in range(20)]) for num_noisy in (1, 0))
    assert early.shape == (20 * B, 2) and (early == 0).any() and (late == 1).all()


def test_rows_are_the_rows():
    """A minibatch has the chosen columns of every tensor, in the order of the indices, their memories, and their final
    observations. The environments of these are indices within the minibatch."""
    collector = make_collector()
    collector.collect()
    rollout, _ = collector.collect()
    indices = torch.tensor([4, 0, 3])
    part = rollout.rows(indices)
    for name in FIELDS:
        assert torch.equal(getattr(part, name), getattr(rollout, name)[:, indices]), name
    for key, value in rollout.observation.items():
        assert torch.equal(part.observation[key], value[:, indices])
    assert torch.equal(part.memory.live(), rollout.memory.live()[indices])
    expected = [i for i, b in enumerate(rollout.final_at[1].tolist()) if b in indices.tolist()]
    assert 0 < len(expected) < len(rollout.final_at[1])
    assert part.final_at[0].tolist() == rollout.final_at[0][expected].tolist()
    assert indices[part.final_at[1]].tolist() == rollout.final_at[1][expected].tolist()
    for key, value in rollout.final_observation.items():
        assert torch.equal(part.final_observation[key], value[expected])
    assert acting_learning_difference(collector.policy, part) < 1e-4  # the parts belong together


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_continues_identically(kind, tmp_path):
    """A collector of another seed loads the state. Its rollouts and episodes are those of the first one, to the bit.
    Episodes under way are included."""
    collector = make_collector(kind)
    loaded = make_collector(kind, seed=99)
    collector.collect()
    collector.returns += np.arange(B)  # as if the episodes under way had rewards already
    state = through_a_file(collector.state(), tmp_path)
    loaded.collect()
    assert loaded.load_state(*state) and loaded.live == collector.live
    for _ in range(2):
        rollout, episodes = collector.collect()
        loaded_rollout, loaded_episodes = loaded.collect()
        assert_same(rollout, loaded_rollout)
        assert episodes == loaded_episodes and episodes and collector.live == loaded.live


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("observation/previous_reward", None, r"observation/previous_reward: expected float32\[6\], got nothing"),
        ("observation/image", lambda x: x.double(), r"observation/image: expected uint8\[6, 3, 3, 3\], got float64"),
        ("lengths", lambda x: x.bool(), r"lengths: expected int64\[6\], got bool\[6\]"),
        ("returns", lambda x: x[:3], r"returns: expected float64\[6\], got float64\[3\]"),
    ],
)
def test_a_state_of_other_arrays_is_refused_in_one_line(name, change, message):
    """Otherwise the next rollout would fail."""
    collector = make_collector()
    collector.collect()
    tensors, metadata = collector.state()
    changed = {**tensors, **({} if change is None else {name: change(tensors[name])})}
    if change is None:
        del changed[name]
    with pytest.raises(RuntimeError, match=f"^{message}"):
        make_collector().load_state(changed, metadata)


def test_environments_that_cannot_save_begin_new_episodes(tmp_path):
    """The memory is then empty."""
    env = envs.make_vec_env("ProbeRecall-v0", 3)
    collectors = [Collector(env, make_policy(env, "transformer_xl"), 4, 0) for _ in range(2)]
    collectors[0].collect()
    tensors, metadata = through_a_file(collectors[0].state(), tmp_path)
    for more in ({}, {"env/mean": torch.zeros(3)}):  # which older runs have of a user's own vector
        assert not collectors[1].load_state({**tensors, **more}, metadata)
        rollout, _ = collectors[1].collect()
        assert rollout.episode_start[0].all() and not rollout.memory.live().any()


def test_a_state_from_before_new_episodes_begins_new_episodes(tmp_path):
    """Somebody else has played in the environments, whose state no longer belongs to what the collector holds."""
    collector, loaded = make_collector(), make_collector(seed=99)
    collector.collect()
    collector.env.reset(seed=7)
    collector.begin_new_episodes()
    state = through_a_file(collector.state(), tmp_path)
    loaded.collect()
    assert not loaded.load_state(*state)
    assert loaded.episode_start.all() and not loaded.lengths.any()
    rollout, _ = loaded.collect()
    assert rollout.episode_start[0].all() and not rollout.memory.live().any()
    collector.collect()
    assert loaded.load_state(*through_a_file(collector.state(), tmp_path))  # the next one has the environments' again


def corrupt(rollout: Rollout, damage: str) -> Rollout:
    """The rollout with one number that is wrong by 1 or NaN, or with other memories."""
    if damage == "memory":
        layers = tuple(replace(layer, hidden=-layer.hidden) for layer in rollout.memory.layers)
        return replace(rollout, memory=replace(rollout.memory, layers=layers))
    name, _, error = damage.partition(" ")
    tensor = getattr(rollout, name).clone()
    index = final_places(rollout)[0] if name == "next_values" else (3, 2)
    tensor[index] += float(error)
    return replace(rollout, **{name: tensor})


DAMAGE = ("memory", *(f"{name} {error}" for name in ("logits", "values", "next_values") for error in (1, "nan")))


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_check_finds_what_is_wrong(damage):
    """For a rollout as it was collected, the difference is rounding. For a changed one it is larger than the limit, or
    NaN."""
    collector = make_collector()
    collector.collect()
    rollout, _ = collector.collect()
    assert acting_learning_difference(collector.policy, rollout) < 1e-5
    assert not acting_learning_difference(collector.policy, corrupt(rollout, damage)) < 0.1


def test_a_difference_is_found_despite_forbidden_actions():
    """The parameter of a forbidden action is -1e8. Relative to it every difference would be negligible."""
    env = envs.make_vec_env("ProbeForbidden-v0", 8)
    policy = make_policy(env, "transformer_xl")
    rollout, _ = Collector(env, policy, 6, 0).collect()
    assert float(rollout.logits.min()) == policy.actions.forbidden
    assert acting_learning_difference(policy, rollout) < 1e-4
    with torch.no_grad():
        policy.policy_head.bias += 0.3
    assert acting_learning_difference(policy, rollout) == pytest.approx(0.3, abs=1e-4)


def test_further_parts_of_runs_have_seeds_far_from_each_other_and_from_all_runs():
    seeds = sorted(far_seed(seed, part) for seed in range(20) for part in range(20))
    assert seeds[0] >= FAR_SEEDS and seeds[-1] < 2 * FAR_SEEDS
    assert np.diff(seeds).min() > 10**6
