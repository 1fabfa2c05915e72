"""An episode as it was played, and the lives of its memories, against plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from viewer_cases import STORING, make_policy

from expire_span_rl.envs import make_env
from expire_span_rl.viewer.play import Episode, action_names, end_steps, look, outcome, play, tensors_of


def test_ends_equals_a_loop():
    visible = np.random.default_rng(0).random((13, 40)) < 0.1  # [t,C]
    expected = []
    for slot in range(40):
        end = 0
        for t in range(13):
            if visible[t, slot]:
                end = t + 1
        expected.append(end)
    assert {0, 13} <= {*expected}
    assert end_steps(visible).tolist() == expected


@pytest.mark.parametrize("kind", STORING)
@pytest.mark.parametrize("chunk", [7, 45, 200])
def test_lives_equal_loops_over_one_inspection_of_the_whole_episode(kind, chunk):
    policy = make_policy(kind, settings={} if kind == "compressive" else None)  # nothing is compressed so early
    episode = play(policy, make_env("Corridor-v0", max_length=200), 3, 45, False, chunk=chunk)
    steps = len(episode.actions)
    assert steps == 45
    whole = tensors_of(policy, episode.observations)
    episode_start = torch.arange(steps)[:, None] == 0
    *_, layers = policy.inspect(whole, policy.initial_memory(1), episode_start)
    lives = look(policy, episode)
    assert len(lives) == len(layers) == 2
    for life, layer in zip(lives, layers):
        first = layer.visible.shape[2] - steps  # padding comes first
        live = [0] * steps
        for written in range(steps):
            end, peak = 0, 0.0
            for t in range(steps):
                if layer.visible[0, t, first + written]:
                    end = t + 1
                    live[t] += 1
                if t > written:
                    peak = max(peak, float(layer.attention[0, :, t, first + written].max()))
            assert life.end[written] == end
            assert life.peak[written] == pytest.approx(peak, abs=1e-5)
        assert life.live.tolist() == live
        np.testing.assert_allclose(life.decision, layer.attention[0, :, -1, first:], atol=1e-5)
        if layer.slot_features is None:
            assert life.span is None
        else:
            np.testing.assert_allclose(life.span, layer.slot_features[0, first:], rtol=1e-4)
    if kind == "transformer_xl":
        assert lives[0].end.tolist() == [min(written + 10, steps) for written in range(steps)]
    if kind == "expire_span":
        assert (lives[0].end < steps).any() and len({*(lives[0].end - np.arange(steps))}) > 2


@pytest.mark.parametrize("chunk", [7, 200])
def test_lives_with_renewed_spans_are_those_of_acting(chunk):
    """The memories that are live at each step, with spans that are renewed every 5 steps, against the same steps played
    again. Memories that were used outlive the spans that they were written with."""
    settings = {"initial_limit": 24, "ramp": 3, "use_lift": 0.8, "use_share": 0.0, "use_coef": 3.0, "renew_every": 5}
    policy = make_policy(settings=settings)
    policy.release_spans()
    torch.manual_seed(1)  # spans with which some memories expire unless they are used
    for layer in policy.core.layers:
        torch.nn.init.normal_(layer.kind.span.weight)
        torch.nn.init.normal_(layer.kind.span.bias, -1.0)
    episode = play(policy, make_env("Corridor-v0", max_length=200), 3, 60, False, chunk=chunk)
    assert [t for t in range(60) if t % 5 == 0 or t % chunk == 0] == list(episode.memories)
    acting = policy.begin(policy.initial_memory(1), 60)
    live = []
    for t in range(60):
        observation = {key: value[t] for key, value in tensors_of(policy, episode.observations).items()}
        policy.step(observation, acting, torch.tensor([t == 0]))
        live.append(acting.live[0])
    lives = look(policy, episode)
    assert torch.equal(torch.stack(live, 1), torch.as_tensor(np.stack([life.live for life in lives])))
    for layer in policy.core.layers:
        layer.kind.config = replace(layer.kind.config, renew_every=0)
    unrenewed = look(policy, replace(episode, memories={0: episode.memories[0]}))
    assert any((life.end > other.end).any() for life, other in zip(lives, unrenewed))


def test_the_members_of_a_compressed_memory_live_on_in_it_and_share_its_attention():
    """Loops over one inspection of the whole episode, in which all compressed slots are beside their members. Pieces of
    7 steps must give the same."""
    policy = make_policy("compressive", settings={"window": 3, "compression_rate": 4, "compressed_window": 2})
    episode = play(policy, make_env("Corridor-v0", max_length=200), 3, 30, False, chunk=7)
    whole, episode_start = tensors_of(policy, episode.observations), torch.arange(30)[:, None] == 0
    for life, layer in zip(look(policy, episode), policy.inspect(whole, policy.initial_memory(1), episode_start)[2]):
        end, peak, decision, live = [0] * 30, [0.0] * 30, np.zeros((4, 30)), [0] * 30
        for c in range(layer.visible.shape[2]):
            if not torch.isfinite(layer.coordinate[0, c]):
                continue
            last, count = int(layer.coordinate[0, c]), int(layer.covers[0, c])
            for t in range(30):
                live[t] += bool(layer.visible[0, t, c])
                for step in range(last - count + 1, last + 1):
                    if layer.visible[0, t, c]:
                        end[step] = max(end[step], t + 1)
                    if t > step:
                        peak[step] = max(peak[step], float(layer.attention[0, :, t, c].max()) / count)
                    if t == 29:
                        decision[:, step] += layer.attention[0, :, t, c].numpy() / count
        assert life.end.tolist() == end and life.live.tolist() == live
        assert end[:4] == [15] * 4  # compressed at step 7, gone at step 15
        np.testing.assert_allclose(life.peak, peak, atol=1e-5)
        np.testing.assert_allclose(life.decision, decision, atol=1e-5)
        np.testing.assert_allclose(life.decision.sum(1), 1, atol=1e-5)


def test_play_is_what_predict_does_and_live_is_what_acting_counts():
    policy, kwargs = make_policy(), {"max_length": 12}
    episode = play(policy, make_env("Corridor-v0", **kwargs), 5, 10_000, True, chunk=16)
    env, state, live = make_env("Corridor-v0", **kwargs), None, []
    observation, _ = env.reset(seed=5)
    for action, observation_seen in zip(episode.actions, episode.observations):
        np.testing.assert_array_equal(observation_seen["image"], observation["image"])
        predicted, state = policy.predict(observation, state, None, deterministic=True)
        assert predicted == action
        live.append(state.acting.live[0].tolist())
        observation, _, terminated, truncated, info = env.step(int(predicted))
    assert terminated or truncated
    assert episode.info == info
    assert episode.ended == ("terminated" if terminated else "truncated")
    assert np.stack([layer.live for layer in look(policy, episode)], 1).tolist() == live


def test_a_seed_gives_the_same_drawn_actions_and_another_seed_others():
    policy = make_policy()
    one, same, other = (play(policy, make_env("Corridor-v0"), seed, 60, False).actions for seed in (1, 1, 2))
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()


@pytest.mark.parametrize(
    ("rewards", "ended", "info", "text"),
    [
        ([0, 1], "terminated", {"is_success": True}, "success, return 1 in 2 steps"),
        ([0], "truncated", {"is_success": False}, "failure, return 0 in 1 step, time limit reached"),
        ([0, 1], "terminated", {"is_success": 1.0}, "success, return 1 in 2 steps"),
        ([0], "terminated", {"is_success": 0}, "failure, return 0 in 1 step"),
        ([0], "terminated", {"is_success": np.float64(0.01)}, "success 0.01, return 0 in 1 step"),
        ([0.5, 0.25], "terminated", {}, "return 0.75 in 2 steps"),
        ([0, 0], "stopped", {"is_success": False}, "return 0 in 2 steps, stopped before its end"),
    ],
)
def test_outcome(rewards, ended, info, text):
    assert outcome(Episode([], np.zeros(len(rewards), int), np.array(rewards), {}, ended, info)) == text


def test_action_names_are_the_environments():
    names = {
        env_id: action_names(make_env(env_id), make_policy(env_id=env_id))
        for env_id in ("MiniGrid-MemoryS7-v0", "CartPole-v1")
    }
    assert names["MiniGrid-MemoryS7-v0"][:3] == ["left", "right", "forward"]
    assert names["CartPole-v1"] == ["action 0", "action 1"]
