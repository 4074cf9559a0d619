"""Description of an engine and its machine, from which virtual and real time build the same engine."""

from __future__ import annotations

from dataclasses import dataclass

from simulation.batching import BatchingEngine, Speeds
from simulation.events import Events
from simulation.llamacpp_engine import RTX_4090_8B, LlamaCppEngine, LlamaCppSize
from simulation.trace import Trace
from simulation.vllm_engine import TWO_H100_32B, VllmEngine, VllmSize

__all__ = ["EngineSpec", "spec_in"]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine.

    Attributes:
        llamacpp: size of a ``llama-server``; ``None`` for a vLLM.
        vllm: size of a vLLM; ``None`` for a ``llama-server``.
    """

    speeds: Speeds
    llamacpp: LlamaCppSize | None = None
    vllm: VllmSize | None = None

    def engine(self, events: Events, reported_steps: int | None = None) -> BatchingEngine:
        """A new engine; ``reported_steps`` as for :class:`BatchingEngine`."""
        if self.llamacpp is not None:
            return LlamaCppEngine(events, self.speeds, self.llamacpp, reported_steps=reported_steps)
        return VllmEngine(events, self.speeds, self.vllm, reported_steps=reported_steps)


def spec_in(trace: Trace, backend: int) -> EngineSpec:
    """The engine ``backend`` of the fleet of ``trace``."""
    slowness = trace.slowness.get(backend, 1.0)
    if trace.engine == "vllm":
        return EngineSpec(TWO_H100_32B.slowed(slowness), vllm=VllmSize())
    return EngineSpec(RTX_4090_8B.slowed(slowness), llamacpp=LlamaCppSize(slot_context=trace.slot_context))
