"""Before a model is loaded: what goes where, will it fit, and how fast will it be?"""

from gguf_moe.plan.placing import GpuShare, Sizes
from gguf_moe.plan.plan import Plan, make_plan
from gguf_moe.plan.speed import Speed, planned_speed

__all__ = ["GpuShare", "Plan", "Sizes", "Speed", "make_plan", "planned_speed"]
