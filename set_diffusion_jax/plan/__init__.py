"""What a run would need and how fast it could be, on machines that are not there."""

from set_diffusion_jax.plan.planner import make_plan
from set_diffusion_jax.plan.report import Plan
from set_diffusion_jax.plan.topology import Topology, parse_topology

__all__ = ["Plan", "Topology", "make_plan", "parse_topology"]
