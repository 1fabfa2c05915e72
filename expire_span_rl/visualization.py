"""Shows what a policy remembers: it plays an episode, or several, and a page tells what it saw, did and kept, and
whether that mattered. The same as a figure, a film, or numbers."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym

from expire_span_rl.checks import shown
from expire_span_rl.environments import environment_of, soon
from expire_span_rl.envs import EnvError, make_env
from expire_span_rl.outputs import check_outputs, write_output
from expire_span_rl.policies import ActorCritic, check_spaces
from expire_span_rl.settings import MAX_STEPS
from expire_span_rl.viewer.audit import audit as audit_memories
from expire_span_rl.viewer.figure import draw
from expire_span_rl.viewer.film import Film, observation_pictures, pack_observations
from expire_span_rl.viewer.naming import observation_names
from expire_span_rl.viewer.page import page
from expire_span_rl.viewer.play import Episode, LayerLives, action_names, core_of, look, outcome, play
from expire_span_rl.viewer.record import record, shared
from expire_span_rl.viewer.summary import summary
from expire_span_rl.viewer.video import scenes, video
from expire_span_rl.viewer.without import forgetting_of, play_without, without_record

PICTURES = (".png", ".pdf", ".svg")
ENDINGS = (".html", *PICTURES, ".mp4", ".json")
AUDITED = 3  # memories whose effect is measured, at every decision
PAGED = 50  # episodes that have a place on the page; of more only the numbers are kept
FPS = 10  # of the film
HEIGHT = 900  # pixels of the page in a notebook


@dataclass(frozen=True)
class OtherEpisode:
    """An episode as it would have gone without a memory."""

    episode: Episode
    film: Film


@dataclass(frozen=True)
class PlayedEpisode:
    """One episode and what is known of it."""

    episode: Episode
    lives: list[LayerLives]
    record: dict[str, Any]
    film: Film
    without: OtherEpisode | None = None


@dataclass(frozen=True)
class Showing:
    """What a policy remembered in episodes that it played. A notebook shows it as the viewer's page."""

    policy: ActorCritic
    title: str
    subtitle: str
    actions: list[str]
    """Their names."""
    episodes: list[PlayedEpisode]

    @property
    def numbers(self) -> dict[str, Any]:
        """All numbers of the page, JSON-able."""
        return shared([played.record for played in self.episodes])

    @property
    def summary(self) -> dict[str, Any]:
        """Which kinds of observation were kept, over all episodes (`viewer.summary`)."""
        return summary([played.record for played in self.episodes])

    def save(self, path: str | Path) -> None:
        """Writes, by the name's ending, the page (.html), the figure (.png, .pdf, .svg) or the film (.mp4) of the first
        episode, or the numbers (.json). What was there stays until the new file is complete; a policy or a run's own
        files are not replaced. Raises ValueError, one line."""
        ending = Path(path).suffix.lower()
        if ending not in ENDINGS:
            raise ValueError(f"{shown(path)}: expected a file name that ends in {' or '.join(ENDINGS)}")
        check_outputs({"path": str(path)})
        write_output(path, self._contents(ending))

    def _contents(self, ending: str) -> bytes:
        first = self.episodes[0]
        if ending == ".html":
            return page([self._paged(played) for played in self.episodes[:PAGED]], self.summary)
        if ending == ".json":
            return json.dumps(self.numbers, allow_nan=False).encode()
        if ending == ".mp4":
            seen = observation_pictures(first.episode.observations, self.policy.config.observation)
            return video(scenes(first.record, list(first.film.frames()) or None, seen), FPS)
        return draw(self.policy, first.episode, first.lives, self.title, self.subtitle, self.actions, ending[1:])

    def _paged(self, played: PlayedEpisode) -> dict[str, Any]:
        """What the page needs of an episode."""
        spec, other = self.policy.config.observation, played.without
        paged = {
            "record": played.record,
            "film": played.film.packed(),
            "seen": pack_observations(played.episode.observations, spec),
        }
        if other is not None:
            seen = pack_observations(other.episode.observations, spec)
            paged["without"] = {"film": other.film.packed(), "seen": seen}
        return paged

    def _repr_html_(self) -> str:
        """The page in a frame of its own."""
        source = html.escape(self._contents(".html").decode())
        style = f"width: 100%; height: {HEIGHT}px; border: 0"
        return f'<iframe srcdoc="{source}" style="{style}" title="{html.escape(self.title)}"></iframe>'


def show_in(
    policy: ActorCritic,
    env: gym.Env,
    name: str,
    label: str,
    *,
    seed: int = 0,
    episodes: int = 1,
    deterministic: bool = True,
    max_steps: int = MAX_STEPS,
    audit: int = AUDITED,
    after_episode: Callable[[], None] = lambda: None,
) -> Showing:
    """Plays the episodes of `seed`, seed + 1, ... in an environment that is there (of `make_env`), which is not closed.

    name, label: what the environment and the policy are called. audit: measures the effect of so many of the memories
    that are attended to most, at every decision; 0: of none. Of the first PAGED episodes there are pictures, of the others
    numbers only. Raises ValueError, one line, for an episode that is longer
    than `max_steps`.
    """
    names = action_names(env, policy)
    played = []
    for i in range(episodes):
        about = {"env": name, "policy": label, "seed": seed + i, "deterministic": deterministic}
        one = _played(policy, env, about, names, max_steps, audit, paged=i < PAGED)
        played.append(one if i < PAGED else _numbers_only(one))
        after_episode()
    how = f"seed {seed}, {'the most likely actions' if deterministic else 'actions drawn from the policy'}"
    return Showing(policy, f"{name}: {outcome(played[0].episode)}", how, names, played)


def _numbers_only(played: PlayedEpisode) -> PlayedEpisode:
    """The episode without what only pictures need."""
    episode = replace(played.episode, observations=[], memories={}, texts=[])
    return PlayedEpisode(episode, [], played.record, Film())


def _no_film(env: gym.Env) -> None:
    """Looks at nothing."""


def _played(
    policy: ActorCritic,
    env: gym.Env,
    about: Mapping[str, Any],
    names: list[str],
    max_steps: int,
    audited: int,
    paged: bool,
) -> PlayedEpisode:
    """Plays one episode and measures it. paged: films it, and plays it again without the memory that mattered."""
    film, seed = Film(), about["seed"]
    try:
        episode = play(policy, env, seed, max_steps, about["deterministic"], watch=film if paged else _no_film)
    except gym.error.DependencyNotInstalled as error:
        hint = """--env-kwargs '{"render_mode": null}' does without pictures of the world"""
        raise ValueError(f"{about['env']}: expected to be able to draw it ({error}); {hint}") from None
    if episode.ended == "stopped":
        raise ValueError(
            f"--max-steps: expected an episode of at most {max_steps} steps, that of seed {seed} is longer"
        )
    lives = look(policy, episode)
    swap = getattr(core_of(env), "swap_observation", None)
    measured = audit_memories(policy, episode, lives, audited, swap, names)
    about = about if film.trouble is None else {**about, "not_drawn": film.trouble}
    told = record(policy, episode, lives, names, about, measured, observation_names(env, policy)) | {"without": None}
    other = _without(policy, env, episode, told, names, max_steps) if paged else None
    return PlayedEpisode(episode, lives, told, film, other)


def _without(
    policy: ActorCritic, env: gym.Env, episode: Episode, told: dict[str, Any], names: list[str], max_steps: int
) -> OtherEpisode | None:
    """Plays the episode without the memory that its story says mattered, and adds it to the record `told`, under
    `without`."""
    forgetting = forgetting_of(told)
    if forgetting is None:
        return None
    film = Film()
    other = play_without(policy, env, episode, forgetting, told["seed"], max_steps, told["deterministic"], film)
    if other is None:
        return None
    told["without"] = without_record(policy, other, names, told, forgetting)
    return OtherEpisode(other, film)


def environment_for(
    policy: ActorCritic,
    info: Mapping[str, Any],
    path: str,
    *,
    env: str,
    imports: Sequence[str],
    env_kwargs: Mapping[str, Any],
) -> tuple[str, gym.Env]:
    """The id and the environment for the policy at `path` to play in, with pictures if it has them.

    env, imports: what the user named, as in `environments.environment_of`; env_kwargs: over those of the policy's
    training. Raises ValueError, one line, if the policy cannot act there.
    """
    env_id, kwargs = environment_of(env, imports, info, path, env_kwargs)
    with soon(env, path):
        made = make_env(env_id, **kwargs)
        made.reset(seed=0)
    check_spaces(policy.config, made.observation_space, made.action_space, path, env_id)
    modes = (made.unwrapped.metadata or {}).get("render_modes") or []
    if "rgb_array" in modes and "render_mode" not in kwargs:
        try:
            drawing = make_env(env_id, **{**kwargs, "render_mode": "rgb_array"})
        except EnvError:  # it says more than it can: the episode is shown without pictures of the world
            return env_id, made
        made.close()
        return env_id, drawing
    return env_id, made
