"""Generation: one compiled loop for every method."""

from set_diffusion_jax.decode.decoder import Decoder
from set_diffusion_jax.decode.generate import Generation, Progress
from set_diffusion_jax.decode.loop import decode, step
from set_diffusion_jax.decode.state import DecodeState, Task
from set_diffusion_jax.decode.stops import Stops
from set_diffusion_jax.decode.template import template

__all__ = [
  "DecodeState",
  "Decoder",
  "Generation",
  "Progress",
  "Stops",
  "Task",
  "decode",
  "step",
  "template",
]
