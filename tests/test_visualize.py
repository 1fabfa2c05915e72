"""The command line: what is written, and how bad usage is answered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import visualize
from expire_span_rl import cli, visualization
from expire_span_rl.policies import KINDS, load_policy, save_policy

sys.path.insert(0, str(Path(__file__).parent / "viewer"))

from viewer_cases import ROOT, SHIPPED, make_policy, saved

MAGIC = {
    ".png": b"\x89PNG",
    ".pdf": b"%PDF",
    ".svg": b"<?xml",
    ".html": b"<!doctype html>",
    ".json": b"{",
    ".mp4": b"\0\0\0",
}


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["visualize.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(visualize.main)
    return stop.value.code, *capsys.readouterr()


def written(path: Path) -> bytes:
    """The file, if its first bytes are those of its ending."""
    data = path.read_bytes()
    assert data.startswith(MAGIC[path.suffix])
    return data


@pytest.mark.parametrize(
    ("env_id", "extra"),
    [
        ("Corridor-v0", ["--env-kwargs", '{"max_length": 6}', "--seed", "3"]),
        ("MiniGrid-MemoryS7-v0", ["--stochastic", "--audit", "1"]),
        ("CartPole-v1", []),
    ],
)
def test_a_page_is_written_and_all_else_that_is_asked_for(tmp_path, monkeypatch, capsys, env_id, extra):
    path = saved(tmp_path / "p.safetensors", env_id=env_id)
    outs = [tmp_path / name for name in ("memory.html", "memory.pdf", "memory.mp4", "memory.json")]
    names = [word for flag, out in zip(("--out", "--png", "--video", "--json"), outs) for word in (flag, str(out))]
    code, said, complaints = run(monkeypatch, capsys, path, *names, *extra)
    assert (code, complaints) == (0, "")
    last = said.splitlines()[-1]
    assert last.startswith(f"{env_id}: ") and last.endswith(f" -> {', '.join(map(str, outs))}")
    for out in outs:
        written(out)
    (told,) = json.loads(outs[-1].read_text())["episodes"]
    assert told["env"] == env_id and told["steps"] == len(told["actions"])
    if told["audit"]["memories"]:
        assert "Did it matter?" in said


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg"])
def test_a_figure_alone_can_be_asked_for(tmp_path, monkeypatch, capsys, ending):
    path, out = saved(tmp_path / "p.safetensors", max_length=5), tmp_path / f"memory{ending}"
    assert run(monkeypatch, capsys, path, "--out", str(out))[0] == 0
    first = written(out)
    assert run(monkeypatch, capsys, path, "--out", str(out))[0] == 0
    assert written(out) == first


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_its_page(tmp_path, monkeypatch, capsys, kind):
    path, out = saved(tmp_path / "p.safetensors", kind, max_length=6), tmp_path / "memory.html"
    assert run(monkeypatch, capsys, path, "--out", str(out), "--stochastic")[0] == 0
    assert b"</html>" in written(out)


def test_several_episodes_follow_the_seed(tmp_path, monkeypatch, capsys):
    path, out = saved(tmp_path / "p.safetensors", max_length=9), tmp_path / "all.json"
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, capsys, path, "--episodes", "3", "--seed", "5", "--json", "all.json")[0] == 0
    told = json.loads(out.read_text())["episodes"]
    assert [episode["seed"] for episode in told] == [5, 6, 7]
    assert run(monkeypatch, capsys, path, "--seed", "7", "--json", "one.json")[0] == 0
    assert json.loads((tmp_path / "one.json").read_text())["episodes"] == told[2:]


def test_what_was_there_stays_until_the_new_one_is_complete(tmp_path, monkeypatch, capsys):
    out = tmp_path / "memory.html"
    assert run(monkeypatch, capsys, SHIPPED, "--out", str(out))[0] == 0
    before = out.read_bytes()
    code, _, complaints = run(monkeypatch, capsys, SHIPPED, "--out", str(out), "--max-steps", "3")
    assert code == 1 and complaints == (  # as with evaluate.py
        "error: Corridor-v0: expected an episode of at most 3 steps, that of seed 0 is longer; --max-steps allows "
        "longer ones (max_steps in Python)\n"
    )
    monkeypatch.setattr(visualization, "page", lambda *given: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["visualize.py", SHIPPED, "--out", str(out)])
    with pytest.raises(ZeroDivisionError):
        visualize.main()
    assert out.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["memory.html"]


def test_finished_episodes_are_written_when_a_later_one_is_too_long(tmp_path, monkeypatch, capsys):
    path = saved(tmp_path / "p.safetensors", max_length=60)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, capsys, path, "--episodes", "9", "--json", "all.json", "--audit", "0")[0] == 0
    steps = [episode["steps"] for episode in json.loads((tmp_path / "all.json").read_text())["episodes"]]
    short = next(i for i in range(8) if steps[i] < steps[i + 1])
    flags = ["--seed", str(short), "--episodes", "2", "--max-steps", str(steps[short]), "--json"]
    before = [(tmp_path / name).read_bytes() for name in ("memory.html", "all.json")]
    code, said, complaints = run(monkeypatch, capsys, path, *flags, "some.json")
    assert code == 1 and said.endswith(" -> some.json\n")
    line = "stopped: what follows is of the first 1 of 2 episodes; memory.html stays as it was\n"
    assert complaints.startswith(f"{line}error: Corridor-v0: ")
    numbers = json.loads((tmp_path / "some.json").read_text())
    (kept,) = numbers["episodes"]
    assert (kept["seed"], kept["steps"]) == (short, steps[short]) and numbers["stopped"]
    code, said, complaints = run(monkeypatch, capsys, path, *flags, "all.json")
    assert code == 1 and "memory.html, all.json stay as they were\n" in complaints and "->" not in said
    assert [(tmp_path / name).read_bytes() for name in ("memory.html", "all.json")] == before


def test_what_cannot_draw_is_told_how_to_do_without(tmp_path, monkeypatch, capsys):
    from gymnasium.envs.classic_control import CartPoleEnv
    from gymnasium.error import DependencyNotInstalled

    def render(self):
        raise DependencyNotInstalled("no pygame here")

    monkeypatch.setattr(CartPoleEnv, "render", render)
    path, out = saved(tmp_path / "p.safetensors", env_id="CartPole-v1"), str(tmp_path / "x.html")
    code, _, complaints = run(monkeypatch, capsys, path, "--out", out)
    assert (
        code == 2
        and complaints.count("\n") == 1
        and "CartPole-v1: expected to be able to draw it (no pygame" in complaints
    )
    assert run(monkeypatch, capsys, path, "--out", out, "--env-kwargs", '{"render_mode": null}')[0] == 0


def test_an_output_that_cannot_be_written_is_bad_usage(monkeypatch, capsys):
    code, _, complaints = run(monkeypatch, capsys, SHIPPED, "--out", "/proc/memory.html", "--audit", "0")
    assert code == 2 and complaints.startswith("error: ") and complaints.count("\n") == 1
    assert "expected a file that can be written" in complaints


def test_a_run_directory_will_do_and_its_kwargs_are_kept(tmp_path, monkeypatch):
    path = saved(tmp_path / "policy.safetensors", view_size=5, max_length=30)
    policy, info = load_policy(path)
    name, env = visualization.environment_for(policy, info, path, env="", imports=(), env_kwargs={"max_length": 7})
    assert name == "Corridor-v0"
    assert (env.unwrapped.core.view_size, env.unwrapped.core.max_length) == (5, 7)


def test_wraps_make_the_episode_longer(tmp_path, monkeypatch, capsys):
    path = saved(tmp_path / "p.safetensors", min_length=5, max_length=5)
    monkeypatch.chdir(tmp_path)
    lengths = []
    for wraps in ([], ["--wrap", "episodes=3"], ["--wrap", "none"]):
        assert run(monkeypatch, capsys, path, "--json", "m.json", "--audit", "0", *wraps)[0] == 0
        lengths.append(json.loads((tmp_path / "m.json").read_text())["episodes"][0]["steps"])
    assert lengths[0] == lengths[2] < lengths[1]


def test_the_folder_that_one_is_in_has_a_name(tmp_path, monkeypatch, capsys):
    saved(tmp_path / "policy.safetensors", max_length=5)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, capsys, ".", "--json", "m.json")[0] == 0
    (told,) = json.loads((tmp_path / "m.json").read_text())["episodes"]
    assert told["policy"] == tmp_path.name


BAD = [
    (["nowhere"], "nowhere: expected a policy file or a run directory, found nothing there"),
    (["{p}", "--out", "x.jpg"], "--out: expected a file name that ends in .html or .png or .pdf or .svg, got 'x.jpg'"),
    (["{p}", "--png", "x.html"], "--png: expected a file name that ends in .png or .pdf or .svg, got 'x.html'"),
    (["{p}", "--video", "x.gif"], "--video: expected a file name that ends in .mp4, got 'x.gif'"),
    (["{p}", "--json", "x"], "--json: expected a file name that ends in .json, got 'x'"),
    (["{p}", "--json", "d.json"], "--json: expected a file, 'd.json' is a folder"),
    (["{p}", "--episodes", "0"], "--episodes: expected at least 1, got 0"),
    (["{p}", "--audit", "-1"], "--audit: expected at least 0, got -1"),
    (["{p}", "--out", "none/x.png"], "--out: expected a folder that exists, there is no 'none'"),
    (["{p}", "--png", ""], "--png: expected the name of a file or a folder, got ''"),
    (["{p}", "--env-kwargs", "{{"], "--env-kwargs: expected a JSON object such as "),
    (["{p}", "--env-kwargs", "3"], "--env-kwargs: expected a JSON object such as "),
    (["{p}", "--env-kwargs", '{{"max_len": 3}}'], "unknown Corridor-v0 keyword 'max_len': "),
    (["{p}", "--env-kwargs", '{{"view_size": 5}}'], "{p}: expected an environment with observation 'image' "),
    (
        ["{p}", "--env-kwargs", '{{"num_envs": 4}}'],
        "--env-kwargs: expected the environment's own keyword arguments, got 'num_envs', which is the toolkit's",
    ),
    (["{p}", "--wrap", "none", "--wrap", "stretch=2"], "wraps: expected none alone, got it with 1 more"),
    (
        ["{p}", "--wrap", "stretch=2", "--env-kwargs", '{{"wraps": ["episodes=2"]}}'],
        '--wrap: expected wraps here or as "wraps" in --env-kwargs, got both',
    ),
    (["{p}", "--env", "MiniGrid-MemoryS7-v0"], "{p}: expected an environment without observation "),
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
    (tmp_path / "d.json").mkdir()
    save_policy(make_policy(), tmp_path / "anonymous.safetensors", {})
    files = {"p": saved(tmp_path / "p.safetensors"), "anonymous": "anonymous.safetensors"}
    code, said, complaints = run(monkeypatch, capsys, *(a.format(**files) for a in arguments))
    assert (code, said) == (2, "")
    assert complaints.startswith(f"error: {beginning.format(**files)}")
    assert complaints.count("\n") == 1 and "Traceback" not in complaints
    assert not [*tmp_path.glob("*.png"), *tmp_path.glob("*.html")]


def test_the_script_from_outside(tmp_path):
    saved(tmp_path / "p.safetensors", max_length=8)
    command = [sys.executable, str(ROOT / "visualize.py"), "p.safetensors", "--seed", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" -> memory.html\n")
    written(tmp_path / "memory.html")
