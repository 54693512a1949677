"""Tokens a second of generation, beside eager PyTorch doing the same steps.

6 layers of width 256, vocabulary 4,096, texts of 256 tokens with prompts of 32. The
peer decodes one text at a time, with a growing cache where the method has one, as the
published code does; both decode greedily, and the tokens of the first text must be the
same. Runs alternate, ours and the peer's; figures are medians.
"""

from collections.abc import Iterator

import jax
import numpy as np
import torch

from benchmarks import measure
from benchmarks.torch_peer import Layers, Peer
from set_diffusion_jax.api import Model
from set_diffusion_jax.config import Config, DecodeConfig
from set_diffusion_jax.data import IdTokenizer, Vocabulary
from set_diffusion_jax.decode.decoder import Decoder
from set_diffusion_jax.hardware.flops import layer_weights

VOCAB, LENGTH, PROMPT, WINDOW, REPEATS = 4096, 256, 32, 8, 3
BATCHES = (1, 8, 32)
GREEDY = {"temperature": 0.0, "stop_at_eos": False}
# Name -> method, how to decode, tokens a step of the peer (None: it does not do this).
CASES = {
  "AR": ("ar", DecodeConfig(**GREEDY), 1),
  "block, S = 8": ("block", DecodeConfig("confidence", **GREEDY), 1),
  "set, W = 8": ("set", DecodeConfig("confidence", 1, window=WINDOW, **GREEDY), 1),
  "set, W = 8, 4 a step": (
    "set",
    DecodeConfig("confidence", 4, window=WINDOW, **GREEDY),
    4,
  ),
  "set, given order": ("set", DecodeConfig("order", **GREEDY), 1),
  "masked, 8 a step": ("masked", DecodeConfig("confidence", 8, **GREEDY), 8),
  "masked, W = 32, 8 a step": (
    "masked",
    DecodeConfig("confidence", 8, window=32, **GREEDY),
    8,
  ),
  "set, given order, 4 drafts": (
    "set",
    DecodeConfig("order", drafts=4, **GREEDY),
    None,
  ),
}


def model(method: str) -> Model:
  """Random weights: an output layer that is not zero, so that decisions are clear."""
  config = Config.from_dict(
    {
      "model": {"layers": 6, "width": 256, "heads": 4, "ffn": 1024},
      "method": {"name": method, "max_set_size": float(WINDOW), "block_size": WINDOW},
      "data": {"source": "none", "length": LENGTH, "bos": False},
    }
  )
  ids = Vocabulary(VOCAB, bos=VOCAB - 4, eos=VOCAB - 3, pad=VOCAB - 2, mask=VOCAB - 1)
  found = Model(config, {}, IdTokenizer(ids), 0)
  params = found.objective.network.init(jax.random.key(0))
  head = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
  params["head"]["kernel"] = 0.3 * head
  return Model(config, params, IdTokenizer(ids), 0)


class PeerDecoder:
  """Greedy decoding of one text with a cache that grows by concatenation."""

  def __init__(self, peer: Peer, mask_id: int):
    self.peer, self.mask_id = peer, mask_id

  def feed(self, tokens, position, seen, cache: Layers | None, keep: int):
    """Probabilities of the slots; the first `keep` slots enter the cache."""
    held = cache[0][0].shape[2] if cache else 0
    mask = torch.cat([torch.ones(len(tokens), held, dtype=torch.bool), seen], 1)
    logits, new = self.peer(tokens[None], position[None], mask[None, None], cache)
    if keep:
      kept = [(k[:, :, :keep], v[:, :, :keep]) for k, v in new]
      pairs = zip(cache, kept, strict=True) if cache else None
      join = lambda a, b: (torch.cat([a[0], b[0]], 2), torch.cat([a[1], b[1]], 2))
      cache = [join(a, b) for a, b in pairs] if cache else kept
    logits[..., self.mask_id] = -torch.inf
    return logits[0].softmax(-1), cache

  def start(self, prompt, total: int, seen):
    """The text with its masks, and the cache of the prompt."""
    text = torch.full((total,), self.mask_id)
    text[: len(prompt)] = prompt
    position = torch.arange(len(prompt))
    return text, self.feed(prompt, position, seen, None, len(prompt))

  def ar(self, prompt, total: int):
    """Token by token."""
    causal = torch.ones(len(prompt), len(prompt), dtype=torch.bool).tril()
    text, (share, cache) = self.start(prompt, total, causal)
    for place in range(len(prompt), total):
      text[place] = share[-1].argmax()
      if place < total - 1:
        one = torch.tensor([place])
        seen = torch.ones(1, 1, dtype=torch.bool)
        share, cache = self.feed(text[one], one, seen, cache, 1)
    return text

  def sets(self, prompt, total: int, each: int, order=None):
    """A sliding window of candidates, of which the surest are committed.

    With an order the candidates are its next tokens, and all are committed.
    """
    causal = torch.ones(len(prompt), len(prompt), dtype=torch.bool).tril()
    text, (_, cache) = self.start(prompt, total, causal)
    fresh = torch.zeros(0, dtype=torch.long)
    while (text == self.mask_id).any():
      missing = (text == self.mask_id).nonzero()[:, 0]
      places = missing[missing < missing[0] + WINDOW]
      if order is not None:
        places = order[torch.isin(order, missing)][:each]
      query = torch.cat([fresh, places])
      seen = torch.eye(len(query), dtype=torch.bool)
      seen[:, : len(fresh)] = True
      seen[: len(fresh), : len(fresh)] = seen[: len(fresh), : len(fresh)].tril()
      share, cache = self.feed(text[query], query, seen, cache, len(fresh))
      confidence, token = share[len(fresh) :].max(-1)
      chosen = confidence.topk(min(each, len(places))).indices
      text[places[chosen]] = token[chosen]
      fresh = places[chosen].sort().values
    return text

  def masked(self, prompt, total: int, each: int, window: int | None):
    """The whole text in each step, and logits of all of it: there is no cache."""
    text = torch.full((total,), self.mask_id)
    text[: len(prompt)] = prompt
    position, seen = torch.arange(total), torch.ones(total, total, dtype=torch.bool)
    while (text == self.mask_id).any():
      share, _ = self.feed(text, position, seen, None, 0)
      places = (text == self.mask_id).nonzero()[:, 0]
      if window is not None:  # completed before the next positions begin
        done = (places[0] - len(prompt)) // window
        places = places[places < len(prompt) + (done + 1) * window]
      confidence, token = share[places].max(-1)
      chosen = confidence.topk(min(each, len(places))).indices
      text[places[chosen]] = token[chosen]
    return text

  def blocks(self, prompt, total: int):
    """Blocks from left to right, each read with the first step of the next."""
    block = torch.arange(len(prompt)) // WINDOW
    text, (_, cache) = self.start(prompt, total, block[:, None] >= block[None])
    fresh = torch.zeros(0, dtype=torch.long)
    for first in range(len(prompt), total, WINDOW):
      places = torch.arange(first, first + WINDOW)
      while (text[places] == self.mask_id).any():
        query = torch.cat([fresh, places])
        seen = torch.ones(len(query), len(query), dtype=torch.bool)
        seen[: len(fresh), len(fresh) :] = False
        share, cache = self.feed(text[query], query, seen, cache, len(fresh))
        confidence, token = share[len(fresh) :].max(-1)
        confidence[text[places] != self.mask_id] = -1
        fresh, best = fresh[:0], confidence.argmax()
        text[places[best]] = token[best]
      fresh = places
    return text


def step_flops(ours: Model, options: DecodeConfig) -> float:
  """Of a step, a row: products with weights, and scores and values over the cache."""
  decoder, model = Decoder(ours.objective, options, WINDOW), ours.config.model
  slots, predicted = decoder.fresh + decoder.window, decoder.window or 1
  if ours.config.method.single_set:
    slots = LENGTH
  layer = layer_weights(model) + 2 * model.width * LENGTH
  return 2.0 * (slots * model.layers * layer + predicted * model.width * VOCAB)


def case(name: str, prompts: np.ndarray, rates: dict[str, float]) -> Iterator[dict]:
  """The rows of one way to decode, one for each batch size."""
  method, options, each = CASES[name]
  ours = model(method)
  order = None
  if method == "set" and options.commit == "order":
    order = np.random.default_rng(1).permutation(np.arange(PROMPT, LENGTH))
    order = np.concatenate([np.arange(PROMPT), order])
  runs = {}
  for batch in BATCHES:
    rest = np.full((batch, LENGTH - PROMPT), VOCAB - 1, np.int32)
    templates = list(np.concatenate([prompts[:batch], rest], axis=1))
    runs[f"{batch}"] = lambda templates=templates: ours.generation(
      templates, 0, options, order
    ).finish()
  first = runs["1"]()[0]
  peer = None
  if each is not None:
    decoder = PeerDecoder(Peer(ours.config.model, VOCAB, ours.params), VOCAB - 1)
    prompt = torch.from_numpy(prompts[0].astype(np.int64))
    peer = {
      "ar": lambda: decoder.ar(prompt, LENGTH),
      "block": lambda: decoder.blocks(prompt, LENGTH),
      "masked": lambda: decoder.masked(prompt, LENGTH, each, options.window),
      "set": lambda: decoder.sets(
        prompt, LENGTH, each, None if order is None else torch.from_numpy(order)
      ),
    }[method]
    agree = sum(np.array(first["tokens"]) == peer().numpy())
    assert agree == LENGTH, f"{name}: {LENGTH - agree} tokens differ from the peer's"
    runs["peer"] = peer
  times = measure.alternating(runs, REPEATS)
  steps = first["steps"]
  for batch in BATCHES:
    yield measure.row(
      name,
      f"batch {batch}, {steps} steps",
      "tokens/s",
      batch * (LENGTH - PROMPT),
      times[f"{batch}"],
      peer and [batch * t for t in times["peer"]],  # one text after another
      flops=steps * batch * step_flops(ours, options),
      rates=rates,
      batch=batch,
      steps=steps,
      tokens_per_step=first["tokens_per_step"],
    )


def main() -> dict:
  """Prints a row for each way to decode and batch size; returns them."""
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, VOCAB - 4, (max(BATCHES), PROMPT)).astype(np.int32)
  rates, table = measure.machine_rates(), measure.Table()
  with torch.inference_mode(), jax.default_matmul_precision("highest"):
    for name in CASES:
      for row in case(name, prompts, rates):
        table.add(row)
  return table.report(machine_rates=rates, threads=torch.get_num_threads())
