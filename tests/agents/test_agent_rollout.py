"""What a rollout holds, against the single environment and the policy acting on one row alone. T time steps, B
environments. The corridors here are so short that episodes end by doors and by the step limit in every rollout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from agent_cases import make_policy, through_a_file

from expire_span_rl import envs
from expire_span_rl.agents.rollout import Collector, Rollout, acting_learning_difference
from expire_span_rl.policies import KINDS

T, B, SEED = 12, 6, 5
SHORT = {"min_length": 3, "max_length": 4, "max_steps": 8}
FIELDS = ("episode_start", "actions", "logits", "values", "next_values", "rewards", "terminated", "truncated")


def make_collector(
    kind: str = "expire_span", seed: int = SEED, env_kwargs: dict | None = None, **settings
) -> Collector:
    """A collector of rollouts [T,B] with a policy of random heads that likes to walk east; `settings`: its own."""
    env = envs.make_vec_env("Corridor-v0", B, **(env_kwargs or SHORT))
    policy = make_policy(env, kind, **{"heads": 0.1, **settings})
    policy.policy_head.bias.data[1] = 1.5
    return Collector(env, policy, T, seed)


def assert_same(left: Rollout, right: Rollout) -> None:
    """To the last bit."""
    for name in FIELDS:
        assert torch.equal(getattr(left, name), getattr(right, name)), name
    for ours, theirs in ((left.observation, right.observation), (left.final_observation, right.final_observation)):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(left.final_at, right.final_at))
    ours, theirs = left.memory.to_tensors(), right.memory.to_tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def is_at(observation: dict[str, torch.Tensor], index: tuple | int, expected: dict) -> bool:
    """Is the entry of a batch of observations the one that a single environment gave?"""
    return all(np.array_equal(observation[key][index].numpy(), value) for key, value in expected.items())


def test_a_rollout_is_what_single_environments_give():
    """Row b replayed in an environment of its own, seeded with seed + b: observations, rewards, ends and starts, what
    truncated episodes saw last and what those that go on saw after the rollout's end, and the finished episodes in the
    order of their ends, over three rollouts."""
    collector = make_collector()
    rollouts = [collector.collect() for _ in range(3)]
    singles = [envs.make_env("Corridor-v0", **SHORT) for _ in range(B)]
    now = [env.reset(seed=SEED + b)[0] for b, env in enumerate(singles)]
    start, returns, steps, spanning = [True] * B, [0.0] * B, [0] * B, 0
    for rollout, episodes in rollouts:
        finals = {at: i for i, at in enumerate(zip(*(x.tolist() for x in rollout.final_at)))}
        expected, cut_at = [], []
        for t, b in np.ndindex(T, B):
            assert is_at(rollout.observation, (t, b), now[b]) and bool(rollout.episode_start[t, b]) == start[b]
            now[b], reward, *ends, info = singles[b].step(int(rollout.actions[t, b]))
            assert float(rollout.rewards[t, b]) == reward
            assert [bool(rollout.terminated[t, b]), bool(rollout.truncated[t, b])] == ends
            start[b], returns[b], steps[b] = any(ends), returns[b] + reward, steps[b] + 1
            if ends[1] or (t == T - 1 and not start[b]):
                cut_at.append((t, b))
                assert is_at(rollout.final_observation, finals[t, b], now[b])
            if not start[b]:
                continue
            spanning += steps[b] > t + 1
            expected.append({"return": returns[b], "steps": steps[b], **info})
            now[b], returns[b], steps[b] = singles[b].reset()[0], 0.0, 0
        ends_apart = sorted(
            cut_at, key=lambda at: (not rollout.truncated[at], at)
        )  # truncations, then the rollout's end
        assert episodes == expected and list(finals) == ends_apart
        assert 0 < rollout.truncated.sum() < len(cut_at) and rollout.terminated.any()
    assert spanning > 3 and {e["return"] for _, episodes in rollouts for e in episodes} == {0, 1}


def stepped_value(collector: Collector, rollout: Rollout, t: int, b: int, following: dict) -> float:
    """The value of the observation `following` as a step would have it, had row b's episode gone on after step t."""
    row, policy = torch.tensor([b]), collector.policy
    acting = policy.begin(rollout.memory.rows(row), t + 2)
    for s in range(t + 1):
        policy.step(
            {key: value[s, row] for key, value in rollout.observation.items()}, acting, rollout.episode_start[s, row]
        )
    following = {key: torch.as_tensor(value) for key, value in following.items()}
    return float(policy.step(following, acting, torch.tensor([False]))[1])


@pytest.mark.parametrize("kind", KINDS)
def test_next_values(kind):
    """Where the episode goes on: the next step's value; at the rollout's end, of the observation that comes next. Where
    it was truncated: of its final observation, with the memory that led to it, which matters."""
    collector = make_collector(kind)
    collector.collect()  # so that the rollout begins with memories
    rollout, _ = collector.collect()
    ended = rollout.terminated | rollout.truncated
    assert torch.equal(rollout.next_values[:-1][~ended[:-1]], rollout.values[1:][~ended[:-1]])
    going_on = torch.nonzero(~ended[-1]).flatten().tolist()
    assert going_on
    for b in going_on:
        following = {key: value[[b]] for key, value in collector.observation.items()}
        expected = stepped_value(collector, rollout, T - 1, b, following)
        assert float(rollout.next_values[-1, b]) == pytest.approx(expected, abs=1e-5)
    alone = []
    for i, (t, b) in enumerate(zip(*(x.tolist() for x in rollout.final_at))):
        final = {key: value[[i]] for key, value in rollout.final_observation.items()}
        expected = stepped_value(collector, rollout, t, b, final)
        assert float(rollout.next_values[t, b]) == pytest.approx(expected, abs=1e-5)
        acting = collector.policy.begin(collector.policy.initial_memory(1), 1)
        alone.append(abs(float(collector.policy.step(final, acting, torch.tensor([True]))[1]) - expected))
    assert alone and (max(alone) > 1e-2 or not KINDS[kind].stores)


@pytest.mark.parametrize("kind", KINDS)
def test_live_figures_are_what_inspect_sees(kind):
    """Mean and maximum over steps and environments of the memories visible at each step, per layer, for a rollout in
    which memories expire; no figures for a memory without slots."""
    collector = make_collector(kind, env_kwargs={"min_length": 30, "max_length": 40, "max_steps": 35}, layers=2)
    for _ in range(3):
        rollout, _ = collector.collect()
    if rollout.memory.live() is None:
        assert collector.live == {}
        return
    layers = collector.policy.inspect(rollout.observation, rollout.memory, rollout.episode_start)[2]
    seen = [layer.visible.sum(-1) for layer in layers]  # L of [B,T]
    assert collector.live["mean"] == pytest.approx([float(n.float().mean()) for n in seen])
    assert collector.live["max"] == [int(n.max()) for n in seen] and 1 < max(collector.live["max"]) < 35


def test_actions_are_drawn_from_the_softmax():
    """Frequencies of 12,288 draws within four standard deviations of the probabilities 0.1, 0.2, 0.3, 0.4."""
    env = envs.make_vec_env("Corridor-v0", 128, min_length=200)
    policy, wanted = make_policy(env, "none"), torch.tensor([0.1, 0.2, 0.3, 0.4])
    policy.policy_head.bias.data.copy_(wanted.log())
    rollout, _ = Collector(env, policy, 96, SEED).collect()
    frequency = torch.bincount(rollout.actions.flatten(), minlength=4) / rollout.actions.numel()
    assert ((frequency - wanted).abs() < 4 * (wanted * (1 - wanted) / rollout.actions.numel()).sqrt()).all()


def test_the_kind_draws_anew_for_each_rollout():
    """Span dropout: one number per environment, kept with the rollout's memory."""
    collector = make_collector(span_model="sigmoid", span_dropout=True)
    first, second = (collector.collect()[0].memory.span_limit for _ in range(2))
    assert first.shape == second.shape == (B, 1) and not torch.isin(first, second).any()


def test_rows_are_the_rows():
    """A minibatch: every tensor's chosen columns in the order asked for, their memories, and their final observations
    with the environment counted within the minibatch."""
    collector = make_collector()
    collector.collect()
    rollout, _ = collector.collect()
    picked = torch.tensor([4, 0, 3])
    part = rollout.rows(picked)
    for name in FIELDS:
        assert torch.equal(getattr(part, name), getattr(rollout, name)[:, picked]), name
    for key, value in rollout.observation.items():
        assert torch.equal(part.observation[key], value[:, picked])
    assert torch.equal(part.memory.live(), rollout.memory.live()[picked])
    expected = [i for i, b in enumerate(rollout.final_at[1].tolist()) if b in picked.tolist()]
    assert 0 < len(expected) < len(rollout.final_at[1])
    assert part.final_at[0].tolist() == rollout.final_at[0][expected].tolist()
    assert picked[part.final_at[1]].tolist() == rollout.final_at[1][expected].tolist()
    for key, value in rollout.final_observation.items():
        assert torch.equal(part.final_observation[key], value[expected])
    assert acting_learning_difference(collector.policy, part) < 1e-4  # all of it belongs together


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_continues_identically(kind, tmp_path):
    """Loaded into a collector of another seed: what the first one goes on with, rollouts and episodes, those under way
    included, to the bit."""
    collector, other = make_collector(kind), make_collector(kind, seed=99)
    collector.collect()
    collector.returns += np.arange(B)  # as if the episodes under way had brought something already
    state = through_a_file(collector.state(), tmp_path)
    other.collect()
    assert other.load_state(*state) and other.live == collector.live
    for _ in range(2):
        (left, ours), (right, theirs) = collector.collect(), other.collect()
        assert_same(left, right)
        assert ours == theirs and ours and collector.live == other.live


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("observation/previous_reward", None, r"observation/previous_reward: expected float32\[6\], got nothing"),
        ("observation/image", lambda x: x.double(), r"observation/image: expected uint8\[6, 3, 3, 3\], got float64"),
        ("lengths", lambda x: x.bool(), r"lengths: expected int64\[6\], got bool\[6\]"),
        ("returns", lambda x: x[:3], r"returns: expected float64\[6\], got float64\[3\]"),
    ],
)
def test_a_state_of_other_arrays_is_refused_in_one_line(name, change, said):
    """They would be found out in the next rollout only."""
    collector = make_collector()
    collector.collect()
    tensors, known = collector.state()
    changed = {**tensors, **({} if change is None else {name: change(tensors[name])})}
    if change is None:
        del changed[name]
    with pytest.raises(RuntimeError, match=f"^{said}"):
        make_collector().load_state(changed, known)


def test_environments_that_cannot_save_begin_new_episodes(tmp_path):
    """The memory is then not that of the old ones."""
    env = envs.make_vec_env("ProbeRecall-v0", 3)
    collectors = [Collector(env, make_policy(env, "transformer_xl"), 4, 0) for _ in range(2)]
    collectors[0].collect()
    assert not collectors[1].load_state(*through_a_file(collectors[0].state(), tmp_path))
    rollout, _ = collectors[1].collect()
    assert rollout.episode_start[0].all() and not rollout.memory.live().any()


def corrupted(rollout: Rollout, what: str) -> Rollout:
    """One number of the rollout is off by 1, or is none; or the memories are others."""
    if what == "memory":
        layers = tuple(replace(layer, hidden=-layer.hidden) for layer in rollout.memory.layers)
        return replace(rollout, memory=replace(rollout.memory, layers=layers))
    name, _, error = what.partition(" ")
    tensor = getattr(rollout, name).clone()
    at = tuple(x[0] for x in rollout.final_at) if name == "next_values" else (3, 2)
    tensor[at] += float(error)
    return replace(rollout, **{name: tensor})


DAMAGE = ("memory", *(f"{name} {error}" for name in ("logits", "values", "next_values") for error in (1, "nan")))


@pytest.mark.parametrize("what", DAMAGE)
def test_the_check_sees_what_is_wrong(what):
    """The difference is rounding for a rollout as it was collected, and larger than the limit, or no number, for one
    that the policy cannot have acted."""
    collector = make_collector()
    collector.collect()
    rollout, _ = collector.collect()
    assert acting_learning_difference(collector.policy, rollout) < 1e-5
    assert not acting_learning_difference(collector.policy, corrupted(rollout, what)) < 0.1


def test_a_difference_is_found_beside_what_a_mask_forbids():
    """The parameter of a forbidden action is -1e8: relative to it every difference would be nothing."""
    env = envs.make_vec_env("ProbeForbidden-v0", 8)
    policy = make_policy(env, "transformer_xl")
    rollout, _ = Collector(env, policy, 6, 0).collect()
    assert float(rollout.logits.min()) == policy.actions.forbidden
    assert acting_learning_difference(policy, rollout) < 1e-4
    with torch.no_grad():
        policy.policy_head.bias += 0.3
    assert acting_learning_difference(policy, rollout) == pytest.approx(0.3, abs=1e-4)
