"""Shows what a policy remembers. The policy plays an episode, or several, and a page shows what it saw, did and
remembered, and whether that mattered. Figure, film and numbers show the same."""

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
from expire_span_rl.envs.closing import closed_on_error
from expire_span_rl.evaluation import endless
from expire_span_rl.outputs import check_outputs, write_output
from expire_span_rl.policies import ActorCritic, check_spaces
from expire_span_rl.settings import MAX_STEPS
from expire_span_rl.viewer.audit import audit as audit_memories
from expire_span_rl.viewer.counterfactual import counterfactual_record, forgetting_of, play_counterfactual
from expire_span_rl.viewer.figure import draw
from expire_span_rl.viewer.film import Film, observation_pictures, pack_observations
from expire_span_rl.viewer.naming import observation_names
from expire_span_rl.viewer.page import page
from expire_span_rl.viewer.play import MAX_ATTENDED, Episode, LayerLives, action_names, core_of, look, outcome, play
from expire_span_rl.viewer.record import record, shared
from expire_span_rl.viewer.summary import summary
from expire_span_rl.viewer.video import scenes, video

PICTURES = (".png", ".pdf", ".svg")
ENDINGS = (".html", *PICTURES, ".mp4", ".json")
AUDITED = 3  # memories whose effect is measured, at every decision
PAGED = 50  # episodes on the page; of later ones only the numbers are kept
FPS = 10  # of the film
HEIGHT = 900  # pixels of the page in a notebook


@dataclass(frozen=True)
class OtherEpisode:
    """An episode as it would have gone without a memory."""

    episode: Episode
    film: Film


@dataclass(frozen=True)
class PlayedEpisode:
    """One episode, the lives of its memories, its numbers and its pictures."""

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
    stopped: bool = False
    """Whether more episodes were asked for, but an error or a signal came before they ended."""

    def __repr__(self) -> str:
        count = len(self.episodes)
        episodes = f"{count} episode{'s' * (count != 1)}"
        return f'<Showing of {episodes}, {shown(self.title)}; save("memory.html") writes the page>'

    @property
    def numbers(self) -> dict[str, Any]:
        """All numbers of the page, JSON-able. `stopped`, True, is among them only if this is so."""
        numbers = shared([played.record for played in self.episodes])
        return {**numbers, "stopped": True} if self.stopped else numbers

    @property
    def summary(self) -> dict[str, Any]:
        """Which kinds of observation were kept, over all episodes (`viewer.summary`)."""
        return summary([played.record for played in self.episodes])

    def save(self, path: str | Path) -> None:
        """Writes, by the name's ending, the page (.html), the figure (.png, .pdf, .svg) or the film (.mp4) of the first
        episode, or the numbers (.json). What was there stays until the new file is complete; only an earlier result is
        replaced. Raises ValueError, one line."""
        ending = Path(path).suffix.lower()
        if ending not in ENDINGS:
            raise ValueError(f"{shown(path)}: expected a file name that ends in {' or '.join(ENDINGS)}")
        check_outputs({"path": str(path)})
        write_output(path, self._contents(ending))

    def _contents(self, ending: str) -> bytes:
        played = self.episodes[0]
        if ending == ".html":
            return page([self._page_data(episode) for episode in self.episodes[:PAGED]], self.summary)
        if ending == ".json":
            return json.dumps(self.numbers, allow_nan=False).encode()
        if ending == ".mp4":
            observations = observation_pictures(played.episode.observations, self.policy.config.observation)
            return video(scenes(played.record, played.film.frames(), observations), FPS)
        return draw(
            self.policy,
            played.episode,
            played.lives,
            title=self.title,
            how=self.subtitle,
            names=self.actions,
            form=ending[1:],
        )

    def _page_data(self, played: PlayedEpisode) -> dict[str, Any]:
        """What the page needs of an episode."""
        spec = self.policy.config.observation
        without = played.without
        data = {
            "record": played.record,
            "film": played.film.packed(),
            "seen": pack_observations(played.episode.observations, spec),
        }
        if without is not None:
            observations = pack_observations(without.episode.observations, spec)
            data["without"] = {"film": without.film.packed(), "seen": observations}
        return data

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
    on_stop: Callable[[Showing], Any] = lambda showing: None,
) -> Showing:
    """Plays the episodes of `seed`, seed + 1 and so on in an existing environment (of `make_env`), which is not closed.

    name, label: what the environment and the policy are called. audit: at every decision, measures the effect of this
    many of the memories that are attended to most; 0: no measurement. The first PAGED episodes have pictures, later
    ones numbers only. on_stop: is called with the episodes that are finished, if there are some, before an error or a
    signal ends it. Raises EndlessEpisode, one line, for an episode that is longer than `max_steps`.
    """
    names = action_names(env, policy)
    player = _Player(policy, env, names, max_steps, audit)
    subtitle = f"seed {seed}, {'the most likely actions' if deterministic else 'actions drawn from the policy'}"
    finished: list[PlayedEpisode] = []

    def showing(stopped: bool = False) -> Showing:
        return Showing(policy, f"{name}: {outcome(finished[0].episode)}", subtitle, names, finished, stopped)

    try:
        for i in range(episodes):
            metadata = {"env": name, "policy": label, "seed": seed + i, "deterministic": deterministic}
            played = player.play(metadata, with_pictures=i < PAGED)
            finished.append(played if i < PAGED else _numbers_only(played))
            after_episode()
    except BaseException:
        if finished:
            on_stop(showing(stopped=True))
        raise
    return showing()


def _numbers_only(played: PlayedEpisode) -> PlayedEpisode:
    """The episode without what only pictures need."""
    episode = replace(played.episode, observations=[], memories={}, texts=[])
    return PlayedEpisode(episode, [], played.record, Film())


def _no_film(env: gym.Env) -> None:
    """A viewer of `play` that takes no pictures."""


@dataclass(frozen=True)
class _Player:
    """Plays and measures episodes of a policy in an environment."""

    policy: ActorCritic
    env: gym.Env
    names: list[str]
    """The names of the actions."""
    max_steps: int
    audited: int
    """Memories whose effect is measured, at every decision."""

    def play(self, metadata: Mapping[str, Any], with_pictures: bool) -> PlayedEpisode:
        """Plays one episode and measures it.

        metadata: `env`, `policy`, `seed` and `deterministic`. with_pictures: films it, and plays it again without the
        memory that mattered. Raises EndlessEpisode, one line, for an episode that is too long, and ValueError for one
        that cannot be drawn."""
        policy, env, names, film = self.policy, self.env, self.names, Film()
        seed, watch = metadata["seed"], film if with_pictures else _no_film
        try:
            episode = play(policy, env, seed, self.max_steps, metadata["deterministic"], watch=watch)
        except gym.error.DependencyNotInstalled as error:
            hint = """--env-kwargs '{"render_mode": null}' does without pictures of the world"""
            raise ValueError(f"{metadata['env']}: expected to be able to draw it ({error}); {hint}") from None
        if episode.ended == "stopped":
            problem = f": expected an episode of at most {self.max_steps:,} steps, that of seed {seed} is longer"
            raise endless(metadata["env"], problem)
        # The audit needs the most attended memories of a layer; one of them may be the step's own.
        lives = look(policy, episode, max(MAX_ATTENDED, self.audited + 1))
        swap = getattr(core_of(env), "swap_observation", None)
        audit = audit_memories(policy, episode, lives, self.audited, swap=swap, names=names)
        if film.trouble is not None:
            metadata = {**metadata, "not_drawn": film.trouble}
        numbers = record(
            policy,
            episode,
            lives,
            names=names,
            about=metadata,
            audit=audit,
            labels=observation_names(env, policy),
        )
        numbers["without"] = None
        counterfactual = self._play_counterfactual(episode, numbers) if with_pictures else None
        return PlayedEpisode(episode, lives, numbers, film, counterfactual)

    def _play_counterfactual(self, episode: Episode, numbers: dict[str, Any]) -> OtherEpisode | None:
        """Plays the episode without the memory that mattered according to its story. Adds the result to its record
        `numbers`, under `without`."""
        forgetting = forgetting_of(numbers)
        if forgetting is None:
            return None
        film = Film()
        counterfactual = play_counterfactual(
            self.policy,
            self.env,
            episode,
            forgetting,
            seed=numbers["seed"],
            max_steps=self.max_steps,
            deterministic=numbers["deterministic"],
            watch=film,
        )
        if counterfactual is None:
            return None
        numbers["without"] = counterfactual_record(self.policy, counterfactual, self.names, numbers, forgetting)
        return OtherEpisode(counterfactual, film)


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

    env, imports: what the user named, as in `environments.environment_of`; env_kwargs: replace those of the policy's
    training, name by name. Raises ValueError, one line, if the policy cannot act there.
    """
    env_id, kwargs = environment_of(env, imports, info, path, env_kwargs)
    with soon(env, path):
        made = make_env(env_id, **kwargs)
        with closed_on_error([made]):
            made.reset(seed=0)
    with closed_on_error([made]):
        check_spaces(policy.config, made.observation_space, made.action_space, path, env_id)
    modes = (made.unwrapped.metadata or {}).get("render_modes") or []
    if "rgb_array" in modes and "render_mode" not in kwargs:
        try:
            drawing = make_env(env_id, **{**kwargs, "render_mode": "rgb_array"})
        except EnvError:  # it announces pictures but has none, so the episode is shown without them
            return env_id, made
        made.close()
        return env_id, drawing
    return env_id, made
