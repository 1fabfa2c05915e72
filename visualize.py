"""Shows what a policy remembers: a saved policy plays an episode, or several, and one page tells what it saw, did and kept,
and whether that mattered. See README.md, or --help."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import torch
import tyro
from rich.console import Console

from expire_span_rl import cli
from expire_span_rl.envs import make_env
from expire_span_rl.policies import ActorCritic, load_policy, observation_spec
from expire_span_rl.policies.io import write_atomically
from expire_span_rl.viewer.audit import audit, table
from expire_span_rl.viewer.figure import draw
from expire_span_rl.viewer.film import Film, observation_pictures, pack_observations
from expire_span_rl.viewer.page import page
from expire_span_rl.viewer.play import Episode, LayerLives, action_names, look, outcome, play
from expire_span_rl.viewer.record import record, shared
from expire_span_rl.viewer.video import scenes, video

PICTURES = (".png", ".pdf", ".svg")
FPS = 10  # of the film


@dataclass(frozen=True)
class Flags:
    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Policy file or run directory."""
    env: str = ""
    """Environment id. Default: the one the policy was trained in."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, a JSON object; in the policy's own environment they add to its own."""
    seed: int = 0
    """Seed of the first episode; the next have seed + 1, ..."""
    episodes: int = 1
    """Episodes of the page and of --json. Figure and film show the first."""
    stochastic: bool = False
    """Draw actions from the policy instead of taking the most likely ones."""
    max_steps: int = 10_000
    """The longest episode that is shown; a longer one is refused."""
    audit: int = 3
    """Measure whether memories mattered: so many of those attended to most, at every decision. 0: none."""
    out: str = "memory.html"
    """What is written: the page (.html), or the figure (.png, .pdf, .svg)."""
    png: str = ""
    """Write the figure here too (.png, .pdf or .svg)."""
    video: str = ""
    """Write the episode as a film here too (.mp4)."""
    json: str = ""
    """Write every number of the page here too (.json)."""

    def check(self) -> None:
        """Raises UsageError for a value out of range. (tyro would wrap what `__post_init__` raises.)"""
        cli.check_seed(self, bits=63)
        cli.check_at_least(self, max_steps=1, episodes=1, audit=0)
        for name, endings in (
            ("out", (".html", *PICTURES)),
            ("png", PICTURES),
            ("video", (".mp4",)),
            ("json", (".json",)),
        ):
            if name == "out" or getattr(self, name):
                _check_output(f"--{name}", getattr(self, name), endings)

    def outputs(self) -> list[str]:
        """All files that are written."""
        return [path for path in (self.out, self.png, self.video, self.json) if path]


def _check_output(flag: str, path: str, endings: tuple[str, ...]) -> None:
    """Raises UsageError unless a file with one of these endings can be written at `path`."""
    if Path(path).suffix.lower() not in endings:
        raise cli.UsageError(f"{flag}: expected a file name that ends in {' or '.join(endings)}, got {path!r}")
    if not Path(path).parent.is_dir():
        raise cli.UsageError(f"{flag}: expected a folder that exists, there is no {str(Path(path).parent)!r}")
    if Path(path).is_dir() or not os.access(Path(path).parent, os.W_OK):
        raise cli.UsageError(f"{flag}: expected a file that can be written, got {path!r}")


@dataclass(frozen=True)
class Shown:
    """One episode and what is known of it."""

    episode: Episode
    lives: list[LayerLives]
    record: dict[str, Any]
    film: Film


def main() -> None:
    flags = cli.parse(Flags, sys.argv[1:], "Plays episodes with a saved policy and shows what it remembers.")
    flags.check()
    torch.set_num_threads(1)  # the fastest for a batch of one
    policy, info = load_policy(flags.path)
    env_id, env = _environment(flags, policy, info)
    names = action_names(env)
    shown = [_shown(flags, policy, env, env_id, names, flags.seed + i) for i in range(flags.episodes)]
    env.close()
    first = shown[0]
    title, form = f"{env_id}: {outcome(first.episode)}", Path(flags.out).suffix.lower()
    how = f"seed {flags.seed}, {'actions drawn from the policy' if flags.stochastic else 'the most likely actions'}"
    written: list[tuple[str, Callable[[], bytes]]] = []
    for path in filter(None, (flags.out if form != ".html" else "", flags.png)):
        suffix = Path(path).suffix.lower()[1:]
        written.append(
            (path, lambda suffix=suffix: draw(policy, first.episode, first.lives, title, how, names, suffix))
        )
    if form == ".html":
        written.append((flags.out, lambda: page([_paged(policy, one) for one in shown])))
    if flags.video:
        written.append((flags.video, lambda: _filmed(policy, first)))
    if flags.json:
        numbers = shared([one.record for one in shown])
        written.append((flags.json, lambda: json.dumps(numbers, allow_nan=False).encode()))
    for path, made in written:
        data = made()
        try:
            write_atomically(path, data)
        except OSError as error:
            raise cli.UsageError(f"{path}: expected a file that can be written ({error.strerror})") from None
    console = Console()
    for one in shown:
        if one.record["audit"]["memories"]:
            console.print(table(one.record))
    print(f"{title} -> {', '.join(flags.outputs())}")


def _shown(flags: Flags, policy: ActorCritic, env: gym.Env, env_id: str, names: list[str], seed: int) -> Shown:
    """Plays one episode and measures it. Raises UsageError if it is longer than --max-steps."""
    film = Film()
    try:
        episode = play(policy, env, seed, flags.max_steps, not flags.stochastic, watch=film)
    except gym.error.DependencyNotInstalled as error:
        hint = """--env-kwargs '{"render_mode": null}' does without pictures of the world"""
        raise cli.UsageError(f"{env_id}: expected to be able to draw it ({error}); {hint}") from None
    if episode.ended == "stopped":
        raise cli.UsageError(
            f"--max-steps: expected an episode of at most {flags.max_steps} steps, that of seed {seed} is longer"
        )
    lives = look(policy, episode)
    swap = getattr(getattr(env.unwrapped, "core", None), "swap_observation", None)
    measured = audit(policy, episode, lives, flags.audit, swap)
    about = {"env": env_id, "policy": Path(flags.path).name, "seed": seed, "deterministic": not flags.stochastic}
    return Shown(episode, lives, record(policy, episode, lives, names, about, measured), film)


def _paged(policy: ActorCritic, shown: Shown) -> dict[str, Any]:
    """What the page needs of an episode."""
    seen = pack_observations(shown.episode.observations, _has_cells(policy))
    return {"record": shown.record, "film": shown.film.packed(), "seen": seen}


def _filmed(policy: ActorCritic, shown: Shown) -> bytes:
    """The MP4 of an episode."""
    seen = observation_pictures(shown.episode.observations, _has_cells(policy))
    frames = list(shown.film.frames()) or None
    return video(scenes(shown.record, frames, seen), FPS)


def _has_cells(policy: ActorCritic) -> bool:
    """Does it see MiniGrid's cells?"""
    return policy.config.observation.get("image", {}).get("kind") == "cells"


def _environment(flags: Flags, policy: ActorCritic, info: Mapping[str, Any]) -> tuple[str, gym.Env]:
    """The environment to play in, with pictures if it has them. Raises ValueError, one line, if it is not one that the
    policy can act in."""
    env_id, kwargs = cli.environment_of(flags.env, info, flags.path)
    kwargs |= cli.json_object("--env-kwargs", flags.env_kwargs)
    env = make_env(env_id, **kwargs)
    if "rgb_array" in env.unwrapped.metadata.get("render_modes", []) and "render_mode" not in kwargs:
        env.close()
        env = make_env(env_id, **{**kwargs, "render_mode": "rgb_array"})
    given = {**observation_spec(env.observation_space), "actions": int(env.action_space.n)}
    wanted = {**policy.config.observation, "actions": policy.config.num_actions}
    for key in ("actions", *sorted(given.keys() | wanted.keys())):
        if given.get(key) != wanted.get(key):
            what = key if key == "actions" else f"observation {key!r}"
            raise cli.UsageError(f"{env_id}: {what}: the policy expects {wanted.get(key)}, got {given.get(key)}")
    return env_id, env


if __name__ == "__main__":
    cli.run(main)
