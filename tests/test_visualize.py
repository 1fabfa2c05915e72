"""The picture of what a policy remembers: what it is made of against plain loops, and how the command line answers."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import cli
import visualize
from envs import make_env
from policies import KINDS, ActorCritic, load_policy, save_policy
from visualize import LayerLives, choose, ends, look, outcome, play, spread

ROOT = Path(visualize.__file__).parent
CONFIGS = {
    "expire_span": {"max_span": 24, "ramp": 3},
    "transformer_xl": {"window": 9},
    "adaptive_span": {"max_span": 24, "ramp": 3},
}


def make_policy(
    kind: str = "expire_span", env_id: str = "Corridor-v0", settings: dict | None = None, **kwargs
) -> ActorCritic:
    """A policy with random weights whose heads and spans are not at zero."""
    torch.manual_seed(0)
    env = make_env(env_id, **kwargs)
    config = KINDS[kind].Config(**(CONFIGS.get(kind, {}) if settings is None else settings))
    policy = ActorCritic.for_spaces(env.observation_space, env.action_space, memory=kind, memory_config=config)
    torch.nn.init.normal_(policy.policy_head.weight)
    for layer in policy.core.layers:
        if kind == "expire_span":
            torch.nn.init.normal_(layer.kind.span.weight)
    return policy


def saved(path: Path, kind: str = "expire_span", env_id: str = "Corridor-v0", **kwargs) -> str:
    save_policy(make_policy(kind, env_id, **kwargs), path, {"env": env_id, "env_kwargs": kwargs, "agent": "ppo"})
    return str(path)


def png_size(data: bytes) -> tuple[int, int]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def drawn(policy: ActorCritic, episode: visualize.Episode) -> bytes:
    names = [f"action {i}" for i in range(policy.config.num_actions)]
    return visualize.draw(policy, episode, look(policy, episode), "Corridor-v0: success", "seed 0", names)


# What is shown


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
    assert ends(visible).tolist() == expected


@pytest.mark.parametrize("kind", sorted(kind for kind in KINDS if KINDS[kind].stores))
@pytest.mark.parametrize("chunk", [7, 45, 200])
def test_lives_equal_loops_over_one_inspection_of_the_whole_episode(kind, chunk):
    policy = make_policy(kind)
    episode = play(policy, make_env("Corridor-v0", max_length=200), 3, 45, False, chunk)
    steps = len(episode.actions)
    assert steps == 45
    whole = visualize._tensors(policy, episode.observations)
    fresh = torch.arange(steps)[:, None] == 0
    *_, layers = policy.inspect(whole, policy.initial_memory(1), fresh)
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
        if layer.described is None:
            assert life.span is None
        else:
            np.testing.assert_allclose(life.span, layer.described[0, first:], rtol=1e-4)
    if kind == "transformer_xl":
        assert lives[0].end.tolist() == [min(written + 10, steps) for written in range(steps)]
    if kind == "expire_span":
        assert (lives[0].end < steps).any() and len({*(lives[0].end - np.arange(steps))}) > 2


def test_the_members_of_a_compressed_memory_live_on_in_it_and_share_its_attention():
    """Loops over one inspection of the whole episode, in which all slots that were compressed are beside their members;
    pieces of 7 steps give the same."""
    policy = make_policy("compressive", settings={"window": 3, "compression_rate": 4, "compressed_window": 2})
    episode = play(policy, make_env("Corridor-v0", max_length=200), 3, 30, False, 7)
    whole, fresh = visualize._tensors(policy, episode.observations), torch.arange(30)[:, None] == 0
    for life, layer in zip(look(policy, episode), policy.inspect(whole, policy.initial_memory(1), fresh)[2]):
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
    episode = play(policy, make_env("Corridor-v0", **kwargs), 5, 10_000, True, 16)
    env, state, live = make_env("Corridor-v0", **kwargs), None, []
    observation, _ = env.reset(seed=5)
    for action, seen in zip(episode.actions, episode.observations):
        np.testing.assert_array_equal(seen["image"], observation["image"])
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


def test_chosen_are_those_with_most_attention_and_the_longest_lives_no_two_alike():
    steps = 12
    decision, peak, end = np.zeros((2, steps)), np.zeros(steps), np.arange(steps) + 2
    decision[1, [3, 11]], peak[[3, 5, 6, 7]], end[1] = [0.4, 0.6], [0.4, 0.9, 0.8, 0.01], 12
    lives = LayerLives(end, peak, decision, np.ones(steps, int), None)
    looks = [bytes([step]) for step in range(steps)]
    assert choose(lives, looks) == [1, 3, 5, 6]  # not 11, the last step itself; 7 has too little attention
    assert choose(lives, looks, most=2) == [3, 5]
    looks[6] = looks[5]
    assert choose(lives, looks) == [1, 3, 5]


def test_of_observations_that_live_equally_long_one_of_each_look_is_chosen():
    steps = 30
    lives = LayerLives(np.arange(steps) + 9, np.zeros(steps), np.zeros((1, steps)), np.ones(steps, int), None)
    assert choose(lives, [bytes([step % 2]) for step in range(steps)]) == [0, 1]
    assert choose(lives, [bytes([step]) for step in range(steps)]) == [0, 1, 2, 3, 4, 5]


@given(st.lists(st.floats(-1, 2), min_size=1, max_size=6))
def test_spread_keeps_order_distance_and_limits(wanted):
    wanted = sorted(wanted)
    places = spread(wanted, 0.16, 0.05, 0.95)
    assert places.min() >= 0.05 - 1e-9 and places.max() <= 0.95 + 1e-9
    assert (np.diff(places) >= 0.16 - 1e-9).all()
    if (np.diff(wanted) >= 0.16).all() and wanted[0] >= 0.05 and wanted[-1] <= 0.95:
        np.testing.assert_allclose(places, wanted)


@pytest.mark.parametrize(
    ("rewards", "ended", "info", "told"),
    [
        ([0, 1], "terminated", {"is_success": True}, "success, return 1 in 2 steps"),
        ([0], "truncated", {"is_success": False}, "failure, return 0 in 1 step, time limit reached"),
        ([0.5, 0.25], "terminated", {}, "return 0.75 in 2 steps"),
        ([0, 0], "stopped", {"is_success": False}, "return 0 in 2 steps, stopped by --max-steps"),
    ],
)
def test_outcome(rewards, ended, info, told):
    assert outcome(visualize.Episode([], np.zeros(len(rewards), int), np.array(rewards), {}, ended, info)) == told


def test_action_names_are_the_environments():
    assert visualize.action_names(make_env("MiniGrid-MemoryS7-v0"))[:3] == ["left", "right", "forward"]
    assert visualize.action_names(make_env("CartPole-v1")) == ["action 0", "action 1"]


# The picture


@pytest.mark.parametrize(
    ("kind", "steps"),
    [*((kind, 10) for kind in KINDS if kind != "expire_span"), ("expire_span", 1), ("expire_span", 1000)],
)
def test_the_picture_of_any_kind_and_length_has_its_size(kind, steps):
    policy = make_policy(kind)
    episode = play(policy, make_env("Corridor-v0", min_length=300, max_length=300), 0, steps, True)
    assert len(episode.actions) == steps
    width, height = png_size(drawn(policy, episode))
    assert width == 1602
    assert (400 < height < 800) if not KINDS[kind].stores else (1500 < height < 2500)


def test_a_policy_without_memory_is_said_to_have_none():
    ax = Figure().add_axes((0, 0, 1, 1))
    visualize._nothing("none", 0, ax)
    visualize._nothing("gru", 1536, ax)
    told = [text.get_text() for text in ax.texts]
    assert told[0].startswith("This policy has no memory (kind 'none')")
    assert told[1].startswith("What this policy remembers (kind 'gru') is a state of 1,536 bytes")


def test_a_span_and_a_life_are_told_beside_the_picture():
    ax = Figure((5, 5)).add_axes((0, 0, 1, 1))
    end, peak = np.array([3, 4, 4, 4]), np.array([0.87, 0, 0, 0])
    lives = LayerLives(end, peak, np.zeros((1, 4)), np.ones(4, int), np.array([2.2, 1, 1, 1]))
    visualize._lives(lives, [b"a", b"b", b"b", b"c"], None, "Layer 1", ax)
    told = [text.get_text() for text in ax.texts]
    assert "step 0\nkept for 3 steps, span 2\nlargest attention 0.87" in told
    assert "step 1 (1 of 2 alike)\nlive to the end, span 1\nlargest attention 0.00" in told
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the oldest on top
    lines = ax.collections[0].get_segments()
    assert [line.tolist() for line in lines][-1] == [[-0.5, 0], [2.5, 0]]  # the largest attention is drawn last


# The command line


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["visualize.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(visualize.main)
    return stop.value.code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("env_id", "extra"),
    [
        ("Corridor-v0", ["--env-kwargs", '{"max_length": 6}', "--seed", "3"]),
        ("MiniGrid-MemoryS7-v0", ["--stochastic", "--max-steps", "20"]),
        ("CartPole-v1", []),
    ],
)
def test_a_picture_is_written(tmp_path, monkeypatch, capsys, env_id, extra):
    path, out = saved(tmp_path / "p.safetensors", env_id=env_id), tmp_path / "memory.png"
    code, said, complaints = run(monkeypatch, capsys, path, "--out", str(out), *extra)
    assert (code, complaints) == (0, "")
    assert said.startswith(f"{env_id}: ") and said.endswith(f" -> {out}\n") and said.count("\n") == 1
    assert png_size(out.read_bytes())[0] == 1602


def test_a_run_directory_will_do_and_its_kwargs_are_kept(tmp_path, monkeypatch):
    path = saved(tmp_path / "policy.safetensors", view_size=5, max_length=30)
    policy, info = load_policy(path)
    flags = visualize.Flags(str(tmp_path), env_kwargs='{"max_length": 7}', out=str(tmp_path / "x.png"))
    name, env = visualize._environment(flags, policy, info)
    assert name == "Corridor-v0"
    assert (env.unwrapped.core.view_size, env.unwrapped.core.max_length) == (5, 7)


BAD = [
    (["nowhere"], "nowhere: expected a policy file or a run directory, found nothing there"),
    (["{p}", "--out", "x.jpg"], "--out: expected a file name that ends in .png, got 'x.jpg'"),
    (["{p}", "--out", "none/x.png"], "--out: expected a folder that exists, there is no 'none'"),
    (["{p}", "--env-kwargs", "{{"], "--env-kwargs: expected a JSON object such as "),
    (["{p}", "--env-kwargs", "3"], "--env-kwargs: expected a JSON object such as "),
    (["{p}", "--env-kwargs", '{{"max_len": 3}}'], "unknown Corridor-v0 keyword 'max_len': "),
    (["{p}", "--env-kwargs", '{{"view_size": 5}}'], "Corridor-v0: observation 'image': the policy expects {{"),
    (["{p}", "--env", "MiniGrid-MemoryS7-v0"], "MiniGrid-MemoryS7-v0: actions: the policy expects 4, got 7"),
    (["{p}", "--env", "Coridor-v0"], "unknown environment 'Coridor-v0': "),
    (["{p}", "--seed", "-1"], "--seed: expected 0 to 2^63 - 1, got -1"),
    (["{p}", "--seed", "x"], ""),
    (["{p}", "--max-steps", "0"], "--max-steps: expected at least 1, got 0"),
    (["{p}", "--sead", "3"], "unknown flag --sead: did you mean --seed?"),
    ([], ""),
    (["{anonymous}"], "--env: expected an environment id, since "),
]


@pytest.mark.parametrize(("arguments", "beginning"), BAD)
def test_bad_usage_is_answered_in_one_line(tmp_path, monkeypatch, capsys, arguments, beginning):
    monkeypatch.chdir(tmp_path)
    save_policy(make_policy(), tmp_path / "anonymous.safetensors", {})
    files = {"p": saved(tmp_path / "p.safetensors"), "anonymous": "anonymous.safetensors"}
    code, said, complaints = run(monkeypatch, capsys, *(a.format(**files) for a in arguments))
    assert (code, said) == (2, "")
    assert complaints.startswith(f"error: {beginning.format()}")
    assert complaints.count("\n") == 1 and "Traceback" not in complaints
    assert not list(tmp_path.glob("*.png"))


def test_the_script_from_outside(tmp_path):
    saved(tmp_path / "p.safetensors", max_length=8)
    command = [sys.executable, str(ROOT / "visualize.py"), "p.safetensors", "--seed", "3", "--max-steps", "20"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" -> memory.png\n")
    assert png_size((tmp_path / "memory.png").read_bytes())[0] == 1602
