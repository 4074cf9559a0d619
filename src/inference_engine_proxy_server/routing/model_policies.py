"""Which policy holds for which model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inference_engine_proxy_server.config.fleet import ModelConfig
from inference_engine_proxy_server.routing.policies import POLICIES, Way

__all__ = ["ModelPolicies"]


@dataclass(frozen=True, slots=True)
class ModelPolicies:
    """Policies; ``None`` stands for ``least_requests``, which looks at no prompt.

    Attributes:
        usual: holds for models that are not named.
        by_model: those that are, by the name that requests ask for.
    """

    usual: Way | None
    by_model: Mapping[str, Way | None]

    @classmethod
    def of(cls, usual: str, models: Mapping[str, ModelConfig]) -> ModelPolicies:
        """The same by names of policies, as settings have them."""
        stated = {model: config.balancing_policy for model, config in models.items()}
        return cls(POLICIES.get(usual), {model: POLICIES.get(name) for model, name in stated.items() if name})

    @property
    def look_at_prompts(self) -> bool:
        """Whether any of them does."""
        return self.usual is not None or any(way is not None for way in self.by_model.values())

    @property
    def learn(self) -> bool:
        """Whether any of them learns from requests."""
        return any(way is not None and way.learns for way in (self.usual, *self.by_model.values()))

    def way(self, model: str | None) -> Way | None:
        """The one for requests that ask for ``model``."""
        return self.usual if model is None else self.by_model.get(model, self.usual)
