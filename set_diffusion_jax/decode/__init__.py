"""Generation: one compiled loop for every method."""

from set_diffusion_jax.decode.loop import Decoder, DecodeState, decode

__all__ = ["DecodeState", "Decoder", "decode"]
