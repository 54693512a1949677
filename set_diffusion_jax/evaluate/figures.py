"""Figures of sequences: nats, perplexity, bits per byte, and their standard errors."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Likelihood:
  """Sums per sequence; every figure is derived from them.

  Attributes:
    nats: float64 [n], the mean over draws of each sequence's summed nats.
    mixed: float64 [n], the bound of each sequence's nats from all its draws together
      (`mixture_nats`), where draws are orders with exact nats; otherwise `nats`.
    tokens: float64 [n], counted tokens of each sequence.
    bytes: float64 [n], bytes of text that the counted tokens stand for.
    draw_variance: float64 [n], the variance of `nats` over draws (`draw_variance`); 0
      for one draw, which says nothing about it.
    draws: Monte Carlo draws of a sequence.
    exact: whether nats are -log p itself (one fixed order) or an upper bound of it.
  """

  nats: np.ndarray
  mixed: np.ndarray
  tokens: np.ndarray
  bytes: np.ndarray
  draw_variance: np.ndarray
  draws: int
  exact: bool

  @property
  def nats_per_token(self) -> float:
    """Total nats / total counted tokens, over the data set."""
    return float(self.nats.sum() / self.tokens.sum())

  @property
  def perplexity(self) -> float:
    """exp(nats per token); infinite where that overflows."""
    return _exp(self.nats_per_token)

  @property
  def bits_per_byte(self) -> float:
    """Total bits / total bytes of text: comparable across tokenizers."""
    return float(self.nats.sum() / math.log(2) / self.bytes.sum())

  @property
  def standard_error(self) -> float:
    """Of nats per token, over sequences (ratio estimator); NaN for one sequence.

    It contains the error of the draws, which differ from sequence to sequence.
    """
    return self._standard_error(self.nats)

  @property
  def standard_error_parts(self) -> dict[str, float]:
    """The standard error by where it is from: empty for one draw.

    draws: how far the figure would move if the same texts were drawn for again. texts:
    what is left of the whole error, the squares adding up; that is how far it would
    move with other texts and infinitely many draws. By counts and by levels the error
    of the draws is estimated from above (`draw_variance`), and that of the texts so
    much from below.
    """
    if self.draws == 1:
      return {}
    draws = math.sqrt(self.draw_variance.sum()) / float(self.tokens.sum())
    left = self.standard_error**2 - draws**2
    return {"texts": math.sqrt(left) if not left < 0 else 0.0, "draws": draws}

  def _standard_error(self, nats: np.ndarray) -> float:
    n = len(nats)
    if n < 2:
      return math.nan
    residual = nats - nats.sum() / self.tokens.sum() * self.tokens
    return float(math.sqrt(n / (n - 1) * (residual**2).sum()) / self.tokens.sum())

  def summary(self) -> dict:
    """The figures as plain JSON values; None for what is not finite."""
    per_byte = float(self.tokens.sum() / self.bytes.sum() / math.log(2))
    scales = {
      "nats_per_token": 1.0,
      "perplexity": self.perplexity,
      "bits_per_byte": per_byte,
    }
    parts = {
      f"{name}_standard_error_{part}": scale * error
      for name, scale in scales.items()
      for part, error in self.standard_error_parts.items()
    }
    mixture = {}
    if self.mixed is not self.nats:
      nats = float(self.mixed.sum() / self.tokens.sum())
      mixture = {
        "mixture_nats_per_token": nats,
        "mixture_perplexity": _exp(nats),
        "mixture_perplexity_standard_error": _exp(nats)
        * self._standard_error(self.mixed),
      }
    figures = {
      "nats_per_token": self.nats_per_token,
      "nats_per_token_standard_error": self.standard_error,
      "perplexity": self.perplexity,
      "perplexity_standard_error": self.perplexity * self.standard_error,
      "bits_per_byte": self.bits_per_byte,
      "bits_per_byte_standard_error": per_byte * self.standard_error,
      **parts,
      **mixture,
      "bound": "exact" if self.exact else "upper bound (NELBO)",
      "tokens": int(self.tokens.sum()),
      "bytes": int(self.bytes.sum()),
      "sequences": len(self.nats),
      "draws": self.draws,
    }
    infinite = lambda x: isinstance(x, float) and not math.isfinite(x)
    return {name: None if infinite(x) else x for name, x in figures.items()}


def _exp(x: float) -> float:
  return math.exp(x) if x < 700 else math.inf


def draw_variance(nats: Float[Array, "K B"]) -> Float[Array, " B"]:
  """The variance of the mean of K draws, from the draws themselves; 0 for K = 1.

  Neighbours are compared, in pairs, if K is odd with the last three together: a group
  of g independent draws y adds g / (g - 1) sum (y - mean)^2 / K^2. It is

  - unbiased for drawn orders, whose draws are independent and distributed alike;
  - too large on average by counts: draws are independent there, but each has a stratum
    of its own, and the squared difference of two strata's means comes in. Neighbouring
    strata are near one another, so it is little;
  - too large on average by levels as well: a stratum that one draw has, no other draw
    has, so that their mean varies less than that of independent draws.
  """
  count = nats.shape[0]
  if count == 1:
    return jnp.zeros_like(nats[0])

  def spread(group):
    size = group.shape[-2]
    apart = group - group.mean(-2, keepdims=True)
    return size / (size - 1) * jnp.square(apart).sum(-2)

  paired = count if count % 2 == 0 else count - 3
  total = spread(nats[:paired].reshape(-1, 2, nats.shape[1])).sum(0)
  if paired < count:
    total = total + spread(nats[paired:])
  return total / count**2


def mixture_nats(nats: Float[Array, "K *B"]) -> Float[Array, "*B"]:  # noqa: F821
  """Minus the log of the mean over K orders of exp(-nats) (METHOD section 4).

  For orders drawn from the policy this is, in expectation, an upper bound of -log p
  that decreases in K; for K = 1 it is the NELBO.
  """
  return math.log(nats.shape[0]) - jax.nn.logsumexp(-nats, axis=0)
