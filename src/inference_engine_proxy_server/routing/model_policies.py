"""Which policy applies to which model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inference_engine_proxy_server.config.fleet import ModelConfig
from inference_engine_proxy_server.routing.choice import Policy
from inference_engine_proxy_server.routing.policies import POLICIES

__all__ = ["ModelPolicies"]


@dataclass(frozen=True, slots=True)
class ModelPolicies:
    """The default policy, and the policies of particular models.

    Attributes:
        usual: for models without their own policy.
        by_model: policies of other models, by the name in the request.
    """

    usual: Policy
    by_model: Mapping[str, Policy]

    @classmethod
    def named(cls, usual: str, models: Mapping[str, ModelConfig]) -> ModelPolicies:
        """Look up policies by their names in the settings."""
        stated = {model: config.balancing_policy for model, config in models.items()}
        return cls(POLICIES[usual], {model: POLICIES[name] for model, name in stated.items() if name})

    @property
    def read_prompts(self) -> bool:
        """Whether any policy reads prompts."""
        return any(policy.reads_prompts for policy in (self.usual, *self.by_model.values()))

    @property
    def learn(self) -> bool:
        """Whether any policy learns from requests."""
        return any(policy.learns for policy in (self.usual, *self.by_model.values()))

    def policy(self, model: str | None) -> Policy:
        """The policy for requests that name ``model``."""
        return self.usual if model is None else self.by_model.get(model, self.usual)
