"""The corpora of the field as the papers cut them; docs/data.md says where to get them.

python -m set_diffusion_jax prepare --config=corpora:corpus=lm1b \
  --output=data/lm1b.tokens
python -m set_diffusion_jax inspect --data \
  --config=corpora:corpus=lm1b,prepared=data/lm1b.tokens
python -m set_diffusion_jax train --workdir=runs/lm1b \
  --config=corpora:corpus=lm1b,prepared=data/lm1b.tokens

Model and optimiser are those of the papers where they trained on the corpus, and the
defaults otherwise.
"""

from set_diffusion_jax.config import config_arguments, default_config
from set_diffusion_jax.errors import UserError

_LM1B = "lm1b/1-billion-word-language-modeling-benchmark-r13output"
_QWEN3 = {"backbone": "qwen3", "head_size": 128, "kv_heads": 8, "rotary_base": 1e6}
_LINES = {"source": "lines", "bos": True, "eos": "both", "tokenizer": "gpt2"}
_SMALL = {"model": {"dropout": 0.1}}
# Of the fine-tuned and the summarising models.
_PUBLISHED_DECAY = {"beta2": 0.98, "weight_decay": 1e-5, "decay": "relative"}
# Name -> what differs from the defaults. Paths are below the argument `data`,
# tokenizers are directories of `data`/tokenizers, or "byte".
CORPORA = {
  "lm1b": {
    "data": {
      **_LINES,
      "train_path": f"{_LM1B}/training-monolingual.tokenized.shuffled/news.en-*",
      "validation_path": f"{_LM1B}/heldout-monolingual.tokenized.shuffled/news.en.*",
      "detokenizer": "lm1b",
      "tokenizer": "bert-base-uncased",
      "length": 128,
    },
    **_SMALL,
  },
  "openwebtext": {
    "data": {
      "source": "jsonl",
      "train_path": "openwebtext/*.jsonl*",
      "validation_documents": 100_000,
      "tokenizer": "gpt2",
      "bos": False,
      "length": 1024,
    },
    "train": {"steps": 300_000},
    **_SMALL,
  },
  "wikitext103": {
    "data": {
      **_LINES,
      "train_path": "wikitext-103/wiki.train.tokens",
      "validation_path": "wikitext-103/wiki.valid.tokens",
      "detokenizer": "wikitext",
      "length": 1024,
    },
    **_SMALL,
  },
  "ptb": {
    "data": {
      **_LINES,
      "train_path": "ptb/ptb.train.txt",
      "validation_path": "ptb/ptb.valid.txt",
      "detokenizer": "ptb",
      "length": 128,
    },
    **_SMALL,
  },
  "text8": {
    "data": {
      "source": "text",
      "train_path": "text8/text8.train",
      "validation_path": "text8/text8.valid",
      "tokenizer": "byte",
      "bos": False,
      "eos": "none",
      "length": 256,
    },
    **_SMALL,
  },
  "c4": {
    "data": {
      "source": "jsonl",
      "train_path": "c4/en/c4-train.*.json.gz",
      "validation_path": "c4/en/c4-validation.*.json.gz",
      "tokenizer": "gpt2",
      "bos": False,
      "length": 1024,
    },
    **_SMALL,
  },
  "gsm8k": {
    "data": {
      "source": "jsonl",
      "train_path": "gsm8k/train.jsonl",
      "validation_path": "gsm8k/test.jsonl",
      "cut": "prompt",
      "prompt_field": "question",
      "field": "answer",
      "prompt_prefix": "Please reason step by step, and put your final answer within "
      "$\\boxed{}$. ",
      "target_prefix": "Answer: ",
      "detokenizer": "gsm8k",
      "tokenizer": "qwen3",
      "length": 1024,
    },
    "model": {
      **_QWEN3, "layers": 28, "width": 2048, "heads": 16, "ffn": 6144, "tied": True,
      "norm_epsilon": 1e-6,
    },
    "optimizer": {
      "learning_rate": 1e-5, "schedule": "cosine", "final_fraction": 0.5,
      "warmup_steps": 100, **_PUBLISHED_DECAY,
    },
    "train": {"steps": 75_000, "batch_size": 1},
  },
  "cnn_dailymail": {
    "data": {
      "source": "jsonl",
      "train_path": "cnn_dailymail/train.jsonl",
      "validation_path": "cnn_dailymail/validation.jsonl",
      "cut": "prompt",
      "prompt_field": "article",
      "field": "highlights",
      "target_prefix": "Summary: ",
      "tokenizer": "qwen3",
      "length": 768,
    },
    "model": {
      **_QWEN3, "layers": 28, "width": 256, "heads": 16, "ffn": 768, "tied": True,
      "norm_epsilon": 1e-6,
    },
    "optimizer": {"warmup_steps": 1000, **_PUBLISHED_DECAY},
    "train": {"steps": 500_000, "batch_size": 128},
  },
}  # fmt: skip


def get_config(arguments: str = ""):
  """`corpus=NAME` of CORPORA; `data=DIR` has the text, or `prepared=DIR` the tokens."""
  given = config_arguments(arguments, corpus="lm1b", data="data", prepared="")
  if given.corpus not in CORPORA:
    raise UserError(f"corpus={given.corpus}: must be one of {', '.join(CORPORA)}")
  config = default_config()
  for group, fields in CORPORA[given.corpus].items():
    config[group].update(fields)
  for name in ("train_path", "validation_path"):
    if config.data[name] is not None:
      config.data[name] = f"{given.data}/{config.data[name]}"
  if config.data.tokenizer != "byte":
    config.data.tokenizer = f"{given.data}/tokenizers/{config.data.tokenizer}"
  if given.prepared:
    config.data.source, config.data.directory = "prepared", given.prepared
  return config
