"""The third-party baselines: Stable-Baselines3's PPO and sb3-contrib's RecurrentPPO, unchanged, behind the calls of our
trainer.

Most of their defaults stay. Those that differ suit many environments and short rollouts (`num_steps`, `batch_size`,
`n_epochs`), or are those of our own PPO on Corridor-v0 (entropy bonus and learning rate).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expire_span_rl.agents.entries import Network
from expire_span_rl.agents.episodes import MEAN_EPISODES
from expire_span_rl.agents.guard import Backup, Deadline, NotFinite, TrainingEnded, check_modules, report_skipped_update
from expire_span_rl.agents.kept_policy import KeptPolicy
from expire_span_rl.agents.rollout import check_arrays, far_seed, select_prefix
from expire_span_rl.agents.schedules import Schedules, whole_rollouts
from expire_span_rl.agents.settings import SB3Config

SAME_NAMES = (
    "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range", "ent_coef", "vf_coef", "max_grad_norm",
)  # fmt: skip
"""Settings that Stable-Baselines3 has under the same name."""


class SB3Trainer:
    """Trains with an algorithm of Stable-Baselines3, one rollout per `update()`: a `TrainingLoop`."""

    best: KeptPolicy | None = None
    """Always None: there are no memories to be fewer, so the run keeps the last policy."""
    keeps_evaluated = False
    log_dir: Path | None = None

    def __init__(
        self,
        network: Network,
        *,
        algorithm: Any,
        config: SB3Config,
        total: int,
        seed: int,
        env_seed: int,
        device: str,
    ):
        """network: its environments are a Stable-Baselines3 VecEnv; algorithm: a class of Stable-Baselines3; total: as
        `Trainer`'s; seed: of weights and actions; env_seed: of the first environment. Raises ValueError, one line, for
        a batch size that leaves a minibatch of one step."""
        from stable_baselines3.common.logger import Logger

        env = network.env
        self.env = env
        self.rollout_size = config.num_steps * env.num_envs
        if self.rollout_size % config.batch_size == 1:
            raise ValueError(
                f"--batch-size: expected no minibatch of one of {self.rollout_size}, got {config.batch_size}"
            )
        self.total_timesteps = whole_rollouts(total, self.rollout_size)
        self.updates = 0
        self.is_whole = True
        self._env_seed = env_seed
        self.stop = threading.Event()
        self.notes: list[str] = []  # what `load_state` reports, in lines
        self.schedules = Schedules({"learning_rate": config.learning_rate}, {"learning_rate": 0.0})
        self.algorithm = algorithm(
            network.policy_class,
            env,
            learning_rate=lambda remaining: remaining * self.schedules.starts["learning_rate"],
            n_steps=config.num_steps,
            **{name: getattr(config, name) for name in SAME_NAMES},
            stats_window_size=1000,
            policy_kwargs=network.policy_kwargs,
            seed=seed,
            device=device,
        )
        env.seed(env_seed)
        self.algorithm.set_logger(Logger(None, []))
        self.skipped = self.skipped_in_a_row = 0  # updates that were undone, since weights were not finite after them
        self._deadline = Deadline(self.stop)
        _, self._callback = self.algorithm._setup_learn(self.total_timesteps, self._in_time)

    @property
    def timesteps(self) -> int:
        return self.algorithm.num_timesteps

    @property
    def done(self) -> bool:
        return self.timesteps >= self.total_timesteps

    def go_on(self, timesteps: int) -> None:
        """Makes this a training of so many steps more, rounded up to whole rollouts."""
        self.total_timesteps = self.timesteps + whole_rollouts(timesteps, self.rollout_size)

    def update(self) -> dict[str, float]:
        """One rollout, and learning from it (one turn of `OnPolicyAlgorithm.learn`). Returns metrics for the log.

        It happens as a whole or not at all, except in environments that cannot save their state. Raises
        TrainingEnded."""
        algorithm = self.algorithm
        counters = algorithm.num_timesteps, algorithm._n_updates, self.updates, self.skipped, self.skipped_in_a_row
        backup = Backup({"policy": algorithm.policy}, algorithm.policy.optimizer)
        episodes = {name: tensor.clone() for name, tensor in {**self._episode_state(), **_generators()}.items()}
        recent = list(algorithm.ep_info_buffer), list(algorithm.ep_success_buffer)
        try:
            return self._run_update(backup)
        except BaseException as error:
            self.is_whole = False  # until all is as before
            backup.restore()
            # Stable-Baselines3 may stop between a step of the environments and recording it.
            self._load_episodes(episodes)
            _load_generators(episodes)
            for buffer, before in zip((algorithm.ep_info_buffer, algorithm.ep_success_buffer), recent, strict=True):
                buffer.clear()
                buffer.extend(before)
            algorithm.num_timesteps, algorithm._n_updates, self.updates, self.skipped, self.skipped_in_a_row = counters
            self.is_whole = True
            if isinstance(error, ValueError):  # PyTorch's, for a distribution with parameters that are not finite
                raise TrainingEnded(f"Stable-Baselines3: {' '.join(str(error).split())[:200]}") from error
            raise

    def _run_update(self, backup: Backup) -> dict[str, float]:
        """See `update`. backup: of the weights and the optimiser."""
        algorithm = self.algorithm
        began = time.perf_counter()
        begun = self.schedules.start_step
        algorithm._update_current_progress_remaining(self.timesteps - begun, self.total_timesteps - begun)
        algorithm.collect_rollouts(algorithm.env, self._callback, algorithm.rollout_buffer, algorithm.n_steps)
        collected = time.perf_counter()
        self._learn(backup)
        ended = time.perf_counter()
        self.updates += 1
        metrics = {key: float(value) for key, value in algorithm.logger.name_to_value.items()}
        metrics["train/skipped_updates"] = self.skipped
        algorithm.logger.dump()
        recent = list(algorithm.ep_info_buffer or ())[-MEAN_EPISODES:]
        if recent:
            metrics["rollout/ep_rew_mean"] = sum(episode["r"] for episode in recent) / len(recent)
            metrics["rollout/ep_len_mean"] = sum(episode["l"] for episode in recent) / len(recent)
        if algorithm.ep_success_buffer:
            metrics["rollout/success_rate"] = sum(algorithm.ep_success_buffer) / len(algorithm.ep_success_buffer)
        metrics["time/fps"] = self.rollout_size / (ended - began)
        metrics["time/rollout_seconds"] = collected - began
        metrics["time/update_seconds"] = ended - collected
        metrics["time/total_timesteps"] = self.timesteps
        return metrics

    def _learn(self, backup: Backup) -> None:
        """Learns from the rollout in the buffer, or undoes the update if weights are not finite after it. Raises
        TrainingEnded if that happens too often in a row."""
        algorithm = self.algorithm
        modules = {"policy": algorithm.policy}
        try:
            try:
                algorithm.train()
            except ValueError:  # the check of the weights has the better message
                check_modules(modules)
                raise
            # Only now, so that acting and learning normalise alike. The buffer's observations are now
            # [steps * environments, ...].
            observations = {key: torch.as_tensor(value) for key, value in algorithm.rollout_buffer.observations.items()}
            algorithm.policy.features_extractor.observe(observations)
            check_modules(modules)
            self.skipped_in_a_row = 0
        except NotFinite as error:
            backup.restore()
            self.skipped += 1
            self.skipped_in_a_row += 1
            report_skipped_update(self.updates + 1, self.skipped_in_a_row, error)

    def _in_time(self, local: Mapping[str, Any], outer: Mapping[str, Any]) -> bool:
        """Called by Stable-Baselines3 after each step. Raises TrainingEnded some seconds after `stop` was set."""
        self._deadline.check()
        return True

    def unfinished(self) -> str | None:
        """None: there is nothing to forget."""
        return None

    def keep_evaluated(self, result: Mapping[str, Any]) -> None:
        """Nothing: see `best`."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state of the training between two updates: tensors by name, and JSON-able metadata."""
        algorithm, policy = self.algorithm, self.algorithm.policy
        tensors = {f"policy/{name}": parameter.detach() for name, parameter in policy.named_parameters()}
        tensors |= {f"statistics/{name}": buffer for name, buffer in policy.named_buffers()}
        for index, entries in policy.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in entries.items()}
        tensors |= self._episode_state()
        metadata = {
            "skipped": [self.skipped, self.skipped_in_a_row],
            "timesteps": self.timesteps,
            "updates": self.updates,
            "n_updates": algorithm._n_updates,
            "schedules": self.schedules.state(self.total_timesteps),
            "episodes": [[float(episode["r"]), int(episode["l"])] for episode in algorithm.ep_info_buffer],
            "successes": [float(success) for success in algorithm.ep_success_buffer],
        }
        return {**tensors, **_generators()}, metadata

    def _episode_state(self) -> dict[str, Tensor]:
        """The state of the current episodes: environments, latest observation, LSTM. Empty if the environments cannot
        save their state."""
        env_state = self.env.venv.state_dict()
        if not env_state:
            return {}
        tensors = {f"env/{name}": torch.as_tensor(array) for name, array in env_state.items()}
        observation = self.algorithm._last_obs
        tensors |= {f"observation/{name}": torch.as_tensor(array) for name, array in observation.items()}
        tensors["episode_start"] = torch.as_tensor(self.algorithm._last_episode_starts)
        return tensors | {f"lstm/{name}": tensor for name, tensor in self._lstm_states()}

    def _load_episodes(self, tensors: Mapping[str, Tensor]) -> bool:
        """Continues from `_episode_state`. Returns False, and changes nothing, if that was empty. Raises RuntimeError,
        one line, for tensors that do not fit."""
        env_state = select_prefix("env/", tensors)
        if not env_state:
            return False
        current = {f"observation/{name}": np.asarray(entry) for name, entry in self.algorithm._last_obs.items()}
        current["episode_start"] = np.asarray(self.algorithm._last_episode_starts)
        current |= {f"lstm/{name}": state.numpy(force=True) for name, state in self._lstm_states()}
        prefixes = ("observation/", "episode_start", "lstm/")
        check_arrays(current, {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)})
        self.env.venv.load_state_dict({name: tensor.numpy() for name, tensor in env_state.items()})
        observation = select_prefix("observation/", tensors)
        self.algorithm._last_obs = {name: tensor.numpy() for name, tensor in observation.items()}
        self.algorithm._last_episode_starts = tensors["episode_start"].numpy()
        for name, state in self._lstm_states():
            state.copy_(tensors[f"lstm/{name}"])
        return True

    def _lstm_states(self) -> Iterator[tuple[str, Tensor]]:
        """The LSTM's states [layers,B,D] of policy and value, by name; none without an LSTM."""
        states = getattr(self.algorithm, "_last_lstm_states", None)
        for network in ("pi", "vf") if states is not None else ():
            for index, tensor in enumerate(getattr(states, network)):
                yield f"{network}/{index}", tensor

    def load_state(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bool:
        """Continues from `state`: the next update is what it would have been. Returns False if the environments could
        not save their state, so that they begin new episodes."""
        policy = self.algorithm.policy
        moments: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                parameter.copy_(tensors[f"policy/{name}"])
            for name, buffer in policy.named_buffers():  # runs from before November 2026 have none
                buffer.copy_(tensors.get(f"statistics/{name}", buffer))
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, index, entry = name.split("/")
                moments.setdefault(int(index), {})[entry] = tensor.clone()
        policy.optimizer.load_state_dict({**policy.optimizer.state_dict(), "state": moments})
        self.algorithm.num_timesteps, self.updates = metadata["timesteps"], metadata["updates"]
        self.algorithm._n_updates = metadata["n_updates"]
        self.notes = []
        if "schedules" in metadata:  # runs from before 26 November 2026 have none
            before = self.timesteps - self.rollout_size
            note = self.schedules.load_state(metadata["schedules"], self.timesteps, before, self.total_timesteps)
            self.notes += [note] if note else []
        for episode_return, length in metadata.get("episodes", ()):
            self.algorithm.ep_info_buffer.append({"r": episode_return, "l": length})
        self.algorithm.ep_success_buffer.extend(metadata.get("successes", ()))
        _load_generators(tensors)
        self.skipped, self.skipped_in_a_row = metadata.get("skipped", (0, 0))
        if self._load_episodes(tensors):  # runs from before 26 November 2026 have none
            return True
        # Neither the episodes of the beginning again, nor those of a run with another seed.
        self.env.seed(far_seed(self._env_seed, self.updates))
        self.algorithm._last_obs = self.env.reset()
        return False

    def close(self) -> None:
        """Closes the environments."""
        self.env.close()


def _generators() -> dict[str, Tensor]:
    """The states of the generators that Stable-Baselines3 draws from: PyTorch's and NumPy's global ones."""
    _, keys, place, *_ = np.random.get_state(legacy=True)
    numpy_state = np.concatenate([np.asarray(keys, np.int64), [place]])
    states = {"generator/torch": torch.get_rng_state(), "generator/numpy": torch.as_tensor(numpy_state)}
    if torch.cuda.is_available():
        states["generator/cuda"] = torch.cuda.get_rng_state()
    return states


def _load_generators(tensors: Mapping[str, Tensor]) -> None:
    """Continues from `_generators`. A generator whose state a checkpoint lacks stays as it is."""
    states = select_prefix("generator/", tensors)
    if "torch" in states:
        torch.set_rng_state(states["torch"])
    if "numpy" in states:
        numpy_state = states["numpy"].numpy()
        np.random.set_state(("MT19937", numpy_state[:-1].astype(np.uint32), int(numpy_state[-1]), 0, 0.0))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
