"""All that is needed to build a policy again, apart from its weights. A policy file holds it as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from expire_span_rl.checks import check_loadable, quoted
from expire_span_rl.policies import core_config
from expire_span_rl.policies.memory import KINDS
from expire_span_rl.policies.shapes import settings_of


@dataclass(frozen=True)
class PolicyConfig:
    """What an `ActorCritic` is built from."""

    observation: Mapping[str, Mapping[str, Any]]
    """The spec of the observation (`policies.encoders.observation_spec`)."""
    actions: Mapping[str, Any]
    """The spec of the actions (`policies.actions.action_spec`). A number stands for that many Discrete actions."""
    memory: str = "expire_span"
    """Memory kind, a name in `policies.memory.KINDS`."""
    memory_config: Any = None
    """The kind's own Config; None for its defaults."""
    core: Any = None
    """The core's own config (see `core_config`); None for its defaults."""
    features_extractor: str = ""
    """The class, "module.Class", that replaces the entries' encoders; empty for none. A file holds only its name."""
    time_aware_value: bool = False
    """Whether the value function knows how many steps ago the episode began (`policies.elapsed`)."""

    def __post_init__(self):
        if isinstance(self.actions, int):
            object.__setattr__(self, "actions", {"kind": "discrete", "n": self.actions})
        for config in (self.memory_config, self.core):
            if is_dataclass(config):
                check_loadable(config)

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PolicyConfig:
        """The config that `to_json` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        if data["memory"] not in KINDS:
            got = f"got {quoted(data['memory'], 60)} (--import registers a kind of your own)"
            raise ValueError(f"memory kind: expected one of {', '.join(KINDS)}, {got}")
        memory_config = settings_of(KINDS[data["memory"]].Config, data["memory_config"])
        core = settings_of(core_config(data["memory"]), data["core"])
        # Files from before November 2026 have Discrete actions only, and their number.
        actions = data["actions"] if "actions" in data else {"kind": "discrete", "n": int(data["num_actions"])}
        extractor = str(data.get("features_extractor", ""))
        return cls(
            observation=data["observation"],
            actions=actions,
            memory=data["memory"],
            memory_config=memory_config,
            core=core,
            features_extractor=extractor,
            time_aware_value=data.get("time_aware_value") is True,  # older files have none
        )
