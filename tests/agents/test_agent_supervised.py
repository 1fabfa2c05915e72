"""Supervised learning: blocks and their boundaries, answers counted by hand, learning, and states."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from expire_span_rl import envs
from expire_span_rl.agents import BlockSource, ForgettingConfig, Supervised, SupervisedConfig, Trainer, forgetting
from expire_span_rl.agents.blocks import Answers
from expire_span_rl.agents.guard import NotFinite, TrainingEnded
from expire_span_rl.agents.time_trial import TimeTrial
from expire_span_rl.policies import KINDS, ActorCritic
from expire_span_rl.policies.settings import TransformerConfig
from expire_span_rl.protocols import CONTROL_EVERY

SMALL = {
    "expire_span": {"initial_limit": 40, "ramp": 4},
    "transformer_xl": {"window": 40},
    "adaptive_span": {"max_span": 64, "ramp": 4},
    "compressive": {"window": 8, "compression_rate": 2, "compressed_window": 8},
}
TASK = {"delay": 8, "min_delay": 1, "length": 4, "vocabulary": 3}
OTHER_TASKS = {
    "Collision-v0": {"grid": 4, "colours": 2, "stream_length": 20, "min_stream_length": 5},
    "Text-v0": {"stream_length": 20, "min_stream_length": 5},
}
STREAMS = {"Copy-v0": TASK, **OTHER_TASKS}


def make_policy(kind: str, env, width: int = 32) -> ActorCritic:
    is_transformer = kind in SMALL or kind == "none"
    core = {"core": TransformerConfig(width=width, sharpness=2.0, head_dropout=0.0)} if is_transformer else {}
    return ActorCritic.for_spaces(
        env.single_observation_space,
        env.single_action_space,
        memory=kind,
        memory_config=KINDS[kind].Config(**SMALL.get(kind, {})),
        **core,
    )


def make_trainer(
    kind: str = "expire_span",
    streams: int = 16,
    total: int = 10**6,
    task: str = "Copy-v0",
    forgetting: ForgettingConfig | None = None,
    **settings,
) -> Trainer:
    torch.manual_seed(0)
    env = envs.make_vec_env(task, streams, **STREAMS[task])
    policy = make_policy(kind, env)
    agent = Supervised(policy, SupervisedConfig(**{"num_steps": 16, "num_minibatches": 4, **settings}), streams, 0)
    source = BlockSource(env, policy, agent.config.num_steps, 0)
    forgetting = forgetting or ForgettingConfig(min_hard_episodes=10)
    return Trainer(env, policy, agent, forgetting, total=total, seed=0, source=source)


@pytest.mark.parametrize(
    "kind, task", [*((kind, "Copy-v0") for kind in KINDS), *(("expire_span", task) for task in OTHER_TASKS)]
)
def test_block_boundaries_change_nothing(kind, task):
    """One block of 128 steps against two of 64, in float64. Compared are the logits and the memory afterwards."""
    env = envs.make_vec_env(task, 5, **STREAMS[task])
    policy = make_policy(kind, env).double()
    with torch.no_grad():
        for head in (policy.policy_head, policy.value_head):
            head.weight.normal_(generator=torch.Generator().manual_seed(1))
    block, _ = BlockSource(env, policy, 128, 3).collect()
    assert block.episode_start.sum() > 20
    whole = policy.unroll(block.observation, block.memory, block.episode_start, keep=True)
    memory = block.memory
    logits = []
    for part in (slice(0, 64), slice(64, 128)):
        observation = {key: entry[part] for key, entry in block.observation.items()}
        out = policy.unroll(observation, memory, block.episode_start[part], keep=True)
        memory = out.memory
        logits.append(out.logits)
    torch.testing.assert_close(torch.cat(logits), whole.logits, rtol=0, atol=1e-10)
    assert torch.equal(memory.time, whole.memory.time)
    for left, right in zip(memory.layers, whole.memory.layers, strict=True):
        assert torch.equal(left.alive, right.alive)
        torch.testing.assert_close(left.hidden[left.alive], right.hidden[right.alive], rtol=0, atol=1e-10)


def test_a_block_is_the_stream_stepped_with_the_right_actions():
    """Against the environment stepped by hand. The previous action in the observation is the right one (teacher
    forcing)."""
    env, stepped = (envs.make_vec_env("Copy-v0", 3, **TASK) for _ in range(2))
    source = BlockSource(env, make_policy("none", env), 10, 5)
    observation, _ = stepped.reset(seed=5)
    start = np.ones(3, bool)
    for _ in range(3):
        block, _ = source.collect()
        for t in range(10):
            core = stepped.unwrapped.core
            for key, entry in observation.items():
                np.testing.assert_array_equal(block.observation[key][t], entry)
            np.testing.assert_array_equal(block.episode_start[t], start)
            np.testing.assert_array_equal(block.actions[t], core.target())
            np.testing.assert_array_equal(block.is_query[t], core.decisions())
            right = core.target()
            observation, _, terminated, truncated, _ = stepped.step(right)
            start = terminated | truncated
            expected = np.where(start, 4, right)  # 4 stands for none at the start of an episode
            np.testing.assert_array_equal(observation["previous_action"], expected)


def test_answers_are_counted_across_blocks():
    """Accuracy and bits of every episode against logits that are collected block by block. The size of the blocks does
    not matter."""
    runs = []
    for steps in (7, 16):
        torch.manual_seed(0)
        env = envs.make_vec_env("Copy-v0", 4, **TASK)
        policy = make_policy("transformer_xl", env)
        torch.nn.init.normal_(policy.policy_head.weight, generator=torch.Generator().manual_seed(2))
        source = BlockSource(env, policy, steps, 1)
        episodes = []
        logits = []
        blocks = []
        for _ in range(112 // steps):
            block, ended_episodes = source.collect()
            episodes += ended_episodes
            with torch.no_grad():
                logits.append(policy.unroll(block.observation, block.memory, block.episode_start).logits)
            blocks.append(block)
        source._count_answers()
        runs.append([*episodes, *source.episodes])
    by_steps = [sorted((e["delay"], e["is_success"], round(e["bits"], 4), e["steps"]) for e in run) for run in runs]
    assert by_steps[0] == by_steps[1] and len(by_steps[0]) > 20
    joined = {
        name: torch.cat([getattr(block, name) for block in blocks]) for name in ("actions", "is_query", "episode_start")
    }
    scores = torch.log_softmax(torch.cat(logits), -1).gather(2, joined["actions"][..., None])[..., 0]
    right = torch.cat(logits).argmax(-1) == joined["actions"]
    expected = []
    for row in range(4):
        starts = [*torch.nonzero(joined["episode_start"][:, row]).flatten().tolist()]
        for begin, end in zip(starts, [*starts[1:], 112], strict=True):
            is_query = joined["is_query"][begin:end, row]
            if is_query.sum() == 4:  # the episode is whole
                bits = float(-scores[begin:end, row][is_query].mean()) / math.log(2)
                expected.append((end - begin, float(right[begin:end, row][is_query].float().mean()), bits))
    answered = sorted((e["steps"], e["is_success"], e["bits"]) for e in runs[1])
    for (*counts, bits), (*answered_counts, answered_bits) in zip(sorted(expected), answered, strict=True):
        assert counts == answered_counts and bits == pytest.approx(answered_bits, rel=0, abs=5e-5)


def test_a_perfect_answerer_has_hard_score_1():
    """Though some streams ask nothing: they are no episodes with wrong answers."""
    trainer = make_trainer("transformer_xl", streams=8, task="Collision-v0")
    source = trainer.collector
    num_ended = 0
    for _ in range(40):
        trainer.window.add(source.collect()[1])
        block = source.block
        num_ended += int(block.episode_start.sum()) - 8 * (num_ended == 0)
        with torch.no_grad():
            out = source.policy.unroll(block.observation, block.memory, block.episode_start, keep=True)
        right = torch.ones_like(block.is_query)
        block.answers = Answers(out.memory, right, torch.zeros(right.shape))
    score, count = trainer.window.hard_score()
    assert count == 10 and score == 1.0
    assert trainer.window.summary()["rollout/success_rate"] == 1.0
    assert 0 < len(trainer.window.recent) < num_ended  # some were left out


def test_streams_with_and_without_skipped_time_are_compared(monkeypatch):
    """One stream in eight is a control. Whether skipping costs too much is measured by what scores can rise by: 1 of
    accuracy, and without success the bits that the loss has fallen by."""
    monkeypatch.setattr(forgetting, "OBSERVED_UPDATES", 0.1)
    seen, gains = [], []
    monkeypatch.setattr(TimeTrial, "add", lambda trial, episodes: seen.extend(episodes))
    monkeypatch.setattr(TimeTrial, "is_harmful", lambda trial, gain: gains.append(gain) or False)
    trainer = make_trainer(forgetting=ForgettingConfig(success_target=0.01, min_hard_episodes=5))
    for _ in range(40):
        trainer.update()
    groups = [is_control for _, is_control in seen]
    assert len(seen) > 100 and sum(groups) / len(groups) == pytest.approx(1 / CONTROL_EVERY, rel=0.3)
    assert set(gains) == {1.0}
    trainer = make_trainer(task="Text-v0", forgetting=ForgettingConfig(loss_tolerance=0.01))
    trainer.controller.learned = trainer.controller.has_waited = True
    trainer.controller.observed = 9.0
    loss = trainer.controller.loss
    loss.first, loss.best, loss.bits, loss.earlier = 7.0, 4.0, 4.0, 4.0
    gains.clear()
    for _ in range(3):
        trainer.update()
    assert gains and gains[-1] == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("task", STREAMS)
def test_memorised_blocks_are_answered_without_a_mistake(task, tmp_path, monkeypatch):
    """32 blocks are repeated until all answers are right. This shows that a lower loss leads to accuracy."""
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, size=120)
    (tmp_path / "a.txt").write_bytes(bytes(letters.tolist()))
    text = {"file": str(tmp_path / "a.txt"), "part": "train", "stream_length": 64}
    monkeypatch.setitem(STREAMS, "Text-v0", text)
    trainer = make_trainer("transformer_xl", streams=4, task=task, num_minibatches=1, learning_rate=3e-3)
    blocks = [trainer.collector.collect()[0] for _ in range(32)]
    starts, is_query = (torch.cat([getattr(block, name) for block in blocks]) for name in ("episode_start", "is_query"))
    if task == "Text-v0":  # the first characters of a piece do not say which piece it is
        recent = torch.stack([starts.roll(t, 0) for t in range(4)]).any(0)
        is_query = is_query & ~recent
    epochs = 60
    for epoch in range(epochs):
        for block in blocks:
            trainer.agent.update(block, epoch / epochs, 0.0)
        right = torch.cat([block.answers.is_right for block in blocks])
        if bool(right[is_query].all()):
            break
    assert right[is_query].all() and is_query.sum() > 250


@pytest.mark.parametrize("kind", ["expire_span", "transformer_xl"])
def test_a_short_string_is_copied(kind):
    trainer = make_trainer(kind, total=150_000, num_minibatches=8)
    while not trainer.done:
        metrics = trainer.update()
        if metrics.get("rollout/hard_score", 0) > 0.98:
            break
    assert metrics["rollout/hard_score"] > 0.98


def test_without_memory_nothing_is_copied():
    trainer = make_trainer("none", total=40_000)
    while not trainer.done:
        metrics = trainer.update()
    assert metrics["rollout/hard_score"] < 0.5 and metrics["train/bits"] > 1.4  # three symbols: 1.58 bits


@pytest.mark.parametrize(
    "kind, task",
    [
        *((kind, "Copy-v0") for kind in ("expire_span", "compressive", "gru")),
        *(("expire_span", task) for task in OTHER_TASKS),
    ],
)
def test_a_state_continues_identically(kind, task):
    """Through JSON, to the bit."""
    forgetting = ForgettingConfig(min_hard_episodes=10, loss_tolerance=0.01 * (task == "Text-v0"))
    trainer = make_trainer(kind, task=task, forgetting=forgetting)
    loaded = make_trainer(kind, task=task, forgetting=forgetting)
    for _ in range(12):
        trainer.update()
    tensors, metadata = trainer.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    expected = [trainer.update() for _ in range(4)]
    assert loaded.load_state(tensors, json.loads(json.dumps(metadata))) is True
    assert [untimed(metrics) for metrics in expected] == [untimed(loaded.update()) for _ in range(4)]
    assert untimed(expected[0]) != untimed(expected[1])
    assert_same_tensors(trainer.state()[0], loaded.state()[0])


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics without times."""
    return {name: value for name, value in metrics.items() if "time/" not in name}


def assert_same_tensors(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_an_interrupted_update_changes_nothing():
    trainer = make_trainer()
    undisturbed = make_trainer()
    for _ in range(3):
        trainer.update()
        undisturbed.update()
    for moment in (3, 18):  # within a block, and within learning
        calls = iter(range(moment))

        def check(remaining=calls) -> None:
            if next(remaining, None) is None:
                raise TrainingEnded("asked to stop")

        set_deadline(trainer, check)
        with pytest.raises(TrainingEnded):
            trainer.update()
    set_deadline(trainer, lambda: None)
    assert untimed(trainer.update()) == untimed(undisturbed.update())
    assert_same_tensors(trainer.state()[0], undisturbed.state()[0])


def set_deadline(trainer: Trainer, check: Callable[[], None]) -> None:
    """Replaces the check for the end of the training, in the source and in the agent."""
    trainer.collector.deadline.check = check
    trainer.agent.check_deadline = check


def test_a_task_of_rewards_is_refused():
    env = envs.make_vec_env("Corridor-v0", 2)
    with pytest.raises(ValueError, match="^--env: expected streams that give right actions, such as Copy-v0, got Corr"):
        BlockSource(env, make_policy("none", env), 4, 0)


def test_an_update_that_is_taken_back_leaves_no_answers(monkeypatch):
    """Those of the weights before it are computed anew, and counted with the next block."""
    trainer = make_trainer("transformer_xl")
    trainer.update()
    block, _ = trainer.collector.collect()
    assert block.answers is None

    def fail() -> None:
        raise NotFinite("weight x: expected finite numbers")

    monkeypatch.setattr(trainer.agent, "check_finite", fail)
    with pytest.raises(NotFinite):
        trainer.agent.update(block, 0.0, 0.0)
    assert block.answers is None
