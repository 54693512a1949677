"""Noise schedules: alpha(t), its derivative, and the times of revealing.

Noise level t runs from 0 (clean) to 1 (all masked); generation time is tau = 1 - t.
alpha(t) is the probability that a token is still clean at noise level t. The functions
compute in the precision of their arguments: float32 at run time, float64 under x64.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Of the log-linear schedule: alpha(1) = 1e-3, as in MDLM.
LOG_LINEAR_EPSILON = 1e-3

# Name -> 1 - alpha(t), the probability that a token is masked at noise level t.
_MASKED = {
  "linear": lambda t: t,
  "cosine": lambda t: 1 - jnp.cos(jnp.pi / 2 * t),
  "square": lambda t: t**2,
  "square_root": lambda t: jnp.sqrt(t),
  "log": lambda t: jnp.log1p(t) / jnp.log(2.0).astype(t.dtype),
  "log_linear": lambda t: (1 - LOG_LINEAR_EPSILON) * t,
}


@dataclasses.dataclass(frozen=True)
class MaskSchedule:
  """alpha(t) that is the same at every position (masked and block diffusion).

  Attributes:
    name: one of MASK_SCHEDULES of config/. With m = 1 - alpha: linear, m = t; cosine,
      m = 1 - cos(pi t / 2); square, m = t^2; square_root, m = sqrt(t); log,
      m = log2(1 + t); log_linear, m = (1 - 1e-3) t.
  """

  name: str = "linear"

  def __post_init__(self):
    if self.name not in _MASKED:
      raise ValueError(f"schedule {self.name!r}: must be one of {', '.join(_MASKED)}")

  def alpha(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """The probability that a token is clean at noise level t."""
    return 1 - _MASKED[self.name](t)

  def alpha_prime(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative by t."""
    return -jax.jvp(_MASKED[self.name], (t,), (jnp.ones_like(t),))[1]

  def weight(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """The NELBO weight -alpha'(t) / (1 - alpha(t)) of a token masked at t > 0."""
    return -self.alpha_prime(t) / (1 - self.alpha(t))


def first_hitting_levels(u: Float[Array, "*B L"]) -> Float[Array, "*B L"]:
  """The noise levels at which L masked tokens are revealed one after another.

  The largest of n uniforms is distributed as u^(1/n), so t_i = t_(i-1) u_i^(1/n_i)
  with n_i = L, L - 1 .. 1 tokens left.

  Args:
    u: uniforms in (0, 1), in order of revealing.

  Returns:
    Descending noise levels below 1.
  """
  left = jnp.arange(u.shape[-1], 0, -1, dtype=u.dtype)
  return jnp.cumprod(u ** jnp.broadcast_to(1 / left, u.shape), axis=-1)


@dataclasses.dataclass(frozen=True)
class PositionOffset:
  """The position-offset schedule of sliding-window set diffusion (METHOD section 2).

  Position l = 1..L is active while a_l <= tau <= a_l + w, with
  a_l = (l - 1) / (L - 1) (1 - w). There alpha_l = ((tau - a_l) / w)^k; before it the
  position is masked, after it clean.

  Attributes:
    length: L.
    width: w in (0, 1]. 1/L gives left to right, 1 the uniformly random order.
    power: k > 0.
  """

  length: int
  width: float
  power: float

  def __post_init__(self):
    if not 0 < self.width <= 1 or not self.power > 0 or self.length < 1:
      raise ValueError(f"{self}: needs 0 < width <= 1, power > 0 and length >= 1")

  @classmethod
  def from_sizes(
    cls, length: int, max_set_size: float, prediction_budget: float | None = None
  ) -> "PositionOffset":
    """The schedule in which N positions are active and C tokens masked on average.

    w = N / (L + N - 1): N - 1 later positions can overtake one. The mean number of
    masked active tokens is C = L w k / (k + 1), so k = C / (L w - C). C = None takes
    N / 4, which matches block diffusion with blocks of N / 2.
    """
    budget = max_set_size / 4 if prediction_budget is None else prediction_budget
    width = max_set_size / (length + max_set_size - 1)
    span = length * width
    if not 0 < budget < span:
      raise ValueError(f"prediction_budget = {budget}: must be in (0, {span:.6g})")
    return cls(length, width, budget / (span - budget))

  def offset(self, like: Float[Array, "... L"]) -> Float[Array, "... L"]:
    """a_l, ascending from 0 to 1 - w, with the rank and dtype of another array."""
    last = 1 - self.width if self.length > 1 else 0.0
    offset = jnp.linspace(0.0, last, self.length).astype(like.dtype)
    return jnp.broadcast_to(offset, like.shape)

  def _elapsed(self, t: Float[Array, "... L"]) -> Float[Array, "... L"]:
    """The share of its active interval that each position has behind it."""
    return (1 - t - self.offset(t)) / self.width

  def alpha(self, t: Float[Array, "... L"]) -> Float[Array, "... L"]:
    """The probability that each position is clean at its noise level t."""
    return jnp.clip(self._elapsed(t), 0, 1) ** self.power

  def alpha_prime(self, t: Float[Array, "... L"]) -> Float[Array, "... L"]:
    """The derivative by t, zero outside the active interval.

    For k < 1 the derivative diverges where the interval begins; there the elapsed
    share is kept one rounding step above zero, so that the result is finite.
    """
    elapsed = self._elapsed(t)
    active = (elapsed >= 0) & (elapsed < 1)
    base = jnp.clip(elapsed, jnp.finfo(t.dtype).eps, 1)
    slope = self.power / self.width * base ** (self.power - 1)
    return jnp.where(active, -slope, 0)

  def reveal_time(self, exponential: Float[Array, "*B L"]) -> Float[Array, "*B L"]:
    """The generation time at which each position is revealed.

    R_l = a_l + w u^(1/k) with u uniform; given as e = -log u, so that
    u^(1/k) = exp(-e / k) keeps its precision near zero.

    Args:
      exponential: draws from Exp(1).

    Returns:
      R in [0, 1]; the first-hitting noise level is 1 - R.
    """
    share = jnp.exp(-exponential / self.power)
    return self.offset(exponential) + self.width * share
