"""Learning from what is right: blocks and their boundaries, answers counted by hand, what is learned, and states."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from expire_span_rl import envs
from expire_span_rl.agents import BlockSource, ForgettingConfig, Supervised, SupervisedConfig, Trainer
from expire_span_rl.agents.guard import TrainingEnded
from expire_span_rl.policies import KINDS, ActorCritic
from expire_span_rl.policies.settings import TransformerConfig

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
    core = {"core": TransformerConfig(width=width, sharpness=2.0)} if kind in SMALL or kind == "none" else {}
    spaces = env.single_observation_space, env.single_action_space
    return ActorCritic.for_spaces(*spaces, memory=kind, memory_config=KINDS[kind].Config(**SMALL.get(kind, {})), **core)


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
    return Trainer(env, policy, agent, forgetting or ForgettingConfig(min_hard_episodes=10), total, 0, source)


@pytest.mark.parametrize(
    "kind, task", [*((kind, "Copy-v0") for kind in KINDS), *(("expire_span", task) for task in OTHER_TASKS)]
)
def test_block_boundaries_change_nothing(kind, task):
    """One block of 128 steps against two of 64, in float64: logits, and the memory afterwards."""
    env = envs.make_vec_env(task, 5, **STREAMS[task])
    policy = make_policy(kind, env).double()
    with torch.no_grad():
        for head in (policy.policy_head, policy.value_head):
            head.weight.normal_(generator=torch.Generator().manual_seed(1))
    block, _ = BlockSource(env, policy, 128, 3).collect()
    assert block.episode_start.sum() > 20
    whole = policy.unroll(block.observation, block.memory, block.episode_start, keep=True)
    memory, logits = block.memory, []
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


def test_a_block_is_the_stream_stepped_with_what_is_right():
    """Against the environment stepped by hand; the previous action is the right one (teacher forcing)."""
    env, other = (envs.make_vec_env("Copy-v0", 3, **TASK) for _ in range(2))
    source = BlockSource(env, make_policy("none", env), 10, 5)
    observation, _ = other.reset(seed=5)
    start = np.ones(3, bool)
    for _ in range(3):
        block, _ = source.collect()
        for t in range(10):
            core = other.unwrapped.core
            for key, entry in observation.items():
                np.testing.assert_array_equal(block.observation[key][t], entry)
            np.testing.assert_array_equal(block.episode_start[t], start)
            np.testing.assert_array_equal(block.actions[t], core.target())
            np.testing.assert_array_equal(block.asked[t], core.decisions())
            right = core.target()
            observation, _, terminated, truncated, _ = other.step(right)
            start = terminated | truncated
            expected = np.where(start, 4, right)  # 4 stands for none at the start of an episode
            np.testing.assert_array_equal(observation["previous_action"], expected)


def test_answers_are_counted_across_blocks():
    """Accuracy and bits of every episode, from logits gathered block by block, whatever the blocks' size."""
    told = []
    for steps in (7, 16):
        torch.manual_seed(0)
        env = envs.make_vec_env("Copy-v0", 4, **TASK)
        policy = make_policy("transformer_xl", env)
        torch.nn.init.normal_(policy.policy_head.weight, generator=torch.Generator().manual_seed(2))
        source = BlockSource(env, policy, steps, 1)
        episodes, logits, blocks = [], [], []
        for _ in range(112 // steps):
            block, ended = source.collect()
            episodes += ended
            with torch.no_grad():
                logits.append(policy.unroll(block.observation, block.memory, block.episode_start).logits)
            blocks.append(block)
        source._count()
        told.append([*episodes, *source.episodes])
    by_steps = [sorted((e["delay"], e["is_success"], round(e["bits"], 4), e["steps"]) for e in run) for run in told]
    assert by_steps[0] == by_steps[1] and len(by_steps[0]) > 20
    joined = {
        name: torch.cat([getattr(block, name) for block in blocks]) for name in ("actions", "asked", "episode_start")
    }
    scores = torch.log_softmax(torch.cat(logits), -1).gather(2, joined["actions"][..., None])[..., 0]
    right = torch.cat(logits).argmax(-1) == joined["actions"]
    expected = []
    for row in range(4):
        starts = [*torch.nonzero(joined["episode_start"][:, row]).flatten().tolist()]
        for begin, end in zip(starts, [*starts[1:], 112], strict=True):
            asked = joined["asked"][begin:end, row]
            if asked.sum() == 4:  # a whole episode
                bits = float(-scores[begin:end, row][asked].mean()) / math.log(2)
                expected.append((end - begin, float(right[begin:end, row][asked].float().mean()), round(bits, 4)))
    assert sorted(expected) == sorted((e["steps"], e["is_success"], round(e["bits"], 4)) for e in told[1])


@pytest.mark.parametrize("task", STREAMS)
def test_what_is_memorised_is_answered_without_a_mistake(task, tmp_path, monkeypatch):
    """64 blocks again and again, to 100%: the loss leads where accuracy is."""
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, size=120)
    (tmp_path / "a.txt").write_bytes(bytes(letters.tolist()))
    text = {"file": str(tmp_path / "a.txt"), "part": "train", "stream_length": 64}
    monkeypatch.setitem(STREAMS, "Text-v0", text)
    trainer = make_trainer("transformer_xl", streams=4, task=task, num_minibatches=1, learning_rate=3e-3)
    blocks = [trainer.collector.collect()[0] for _ in range(64)]
    starts, asked = (torch.cat([getattr(block, name) for block in blocks]) for name in ("episode_start", "asked"))
    if task == "Text-v0":  # the first characters of a piece do not say which piece it is
        recent = torch.stack([starts.roll(t, 0) for t in range(4)]).any(0)
        asked = asked & ~recent
    epochs = 60
    for epoch in range(epochs):
        for block in blocks:
            trainer.agent.update(block, epoch / epochs, 0.0)
        right = torch.cat([block.answers.right for block in blocks])
        if bool(right[asked].all()):
            break
    assert right[asked].all() and asked.sum() > 500


@pytest.mark.parametrize("kind", ["expire_span", "transformer_xl"])
def test_a_short_string_is_copied(kind):
    trainer = make_trainer(kind, total=150_000, num_minibatches=8)
    while not trainer.done:
        figures = trainer.update()
        if figures.get("rollout/hard_score", 0) > 0.98:
            break
    assert figures["rollout/hard_score"] > 0.98


def test_without_memory_nothing_is_copied():
    trainer = make_trainer("none", total=40_000)
    while not trainer.done:
        figures = trainer.update()
    assert figures["rollout/hard_score"] < 0.5 and figures["train/bits"] > 1.4  # three symbols: 1.58 bits


@pytest.mark.parametrize(
    "kind, task",
    [
        *((kind, "Copy-v0") for kind in ("expire_span", "compressive", "gru")),
        *(("expire_span", t) for t in OTHER_TASKS),
    ],
)
def test_a_training_goes_on_bit_by_bit(kind, task):
    forgetting = ForgettingConfig(min_hard_episodes=10, loss_tolerance=0.01 * (task == "Text-v0"))
    trainer, again = (make_trainer(kind, task=task, forgetting=forgetting) for _ in range(2))
    for _ in range(12):
        trainer.update()
    tensors, known = trainer.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    expected = [trainer.update() for _ in range(4)]
    assert again.load_state(tensors, json.loads(json.dumps(known))) is True
    continued = [again.update() for _ in range(4)]
    untimed = [{name: value for name, value in row.items() if "time/" not in name} for row in expected + continued]
    assert untimed[:4] == untimed[4:] and untimed[0] != untimed[1]
    last, again_last = trainer.state()[0], again.state()[0]
    assert last.keys() == again_last.keys()
    assert [name for name in last if not torch.equal(last[name], again_last[name])] == []


def test_an_update_that_is_broken_off_changes_nothing():
    trainer, undisturbed = make_trainer(), make_trainer()
    for _ in range(3):
        trainer.update()
        undisturbed.update()
    for moment in (3, 18):  # in the midst of a block, and of learning
        calls = iter(range(moment))

        def check(left=calls) -> None:
            if next(left, None) is None:
                raise TrainingEnded("asked to stop")

        trainer.collector.deadline.check = trainer.agent.check_deadline = check
        with pytest.raises(TrainingEnded):
            trainer.update()
    trainer.collector.deadline.check = trainer.agent.check_deadline = lambda: None
    expected, found = undisturbed.update(), trainer.update()
    assert {n: v for n, v in expected.items() if "time/" not in n} == {
        n: v for n, v in found.items() if "time/" not in n
    }
    ours, theirs = trainer.state()[0], undisturbed.state()[0]
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_task_of_rewards_is_refused():
    env = envs.make_vec_env("Corridor-v0", 2)
    with pytest.raises(ValueError, match="^--env: expected streams that say what is right, such as Copy-v0, got Corr"):
        BlockSource(env, make_policy("none", env), 4, 0)
