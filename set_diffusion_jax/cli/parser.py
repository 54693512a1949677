"""The arguments of every verb."""

import argparse
import difflib
import re

from set_diffusion_jax.cli.values import (
  checkpoint,
  corpus,
  destination,
  number,
  path,
  place,
  seed,
  source,
  whole,
)
from set_diffusion_jax.config import COMMITS, WEIGHTS
from set_diffusion_jax.data.zero_shot import ZERO_SHOT
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.jobs.outcomes import OUTCOMES
from set_diffusion_jax.storage.lease import TIMEOUT

_CODES = "; ".join(f"{code} {meaning}" for code, meaning, _ in OUTCOMES)
_ABOUT = f"""Set Diffusion language models: train, evaluate, generate, convert.

Exit codes: {_CODES}.
"""
_CONFIG_HELP = (
  "--config=FILE[:key=value,...] names the configuration (required): a file, or an "
  "installed one by its name, such as quickstart; --config.group.field=value changes "
  "one of its fields."
)


_OVERRIDE_HELP = (
  "--config.group.field=value changes a field of the checkpoint's own configuration, "
  "such as --config.data.validation_path=FILE or --config.method.max_set_size=16."
)


class _Parser(argparse.ArgumentParser):
  """One line instead of a usage text for a mistake."""

  def error(self, message: str):
    message = re.sub(r"^argument (?:\S+/)?(\S+): =", r"\1=", message)  # of `values`
    raise UserError(f"{message}; see {self.prog} --help")

  def parse_known_args(self, args=None, namespace=None):
    """As the base class, but an option that is not known is told with a near one."""
    found, rest = super().parse_known_args(args, namespace)
    for word in rest:
      name = word.split("=")[0]
      near = difflib.get_close_matches(name, self._option_string_actions, 1)
      if name.startswith("--") and near:
        self.error(f"{word} is not an option; did you mean {near[0]}?")
    return found, rest


def make_parser() -> argparse.ArgumentParser:
  """The parser; `--config` and its fields are not its own."""
  parser = _Parser(prog="set-diffusion", description=_ABOUT, allow_abbrev=False)
  verbs = parser.add_subparsers(dest="verb", required=True, parser_class=_Parser)

  def verb(name: str, text: str) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=text, description=text, allow_abbrev=False)

  train = verb("train", "Train, or continue, the run of a work directory.")
  train.add_argument(
    "--workdir",
    required=True,
    type=place,
    help="a directory, or gs://BUCKET/PATH; a run that is there goes on",
  )
  train.add_argument(
    "--profile", action="store_true", help="trace a few steps, to WORKDIR/profile"
  )
  train.add_argument(
    "--lease-timeout",
    type=whole(120),
    default=TIMEOUT,
    metavar="SECONDS",
    help="a run on another host that has shown no sign of life for so long no longer "
    f"holds the work directory; at least 120, default: {TIMEOUT}",
  )
  _job(train)
  train.epilog = _CONFIG_HELP

  _prepare(verb("prepare", "Tokenize a corpus once, for training that reads it fast."))
  _evaluate(verb("evaluate", "Held-out likelihood of a checkpoint."))
  sample = verb("sample", "Continue texts with a checkpoint.")
  sample.add_argument("--prompt", action="append", help="may be given several times")
  sample.add_argument(
    "--length", type=whole(1, 2**20), help="tokens, prompt and BOS included"
  )
  _generation(sample, "prompt")

  infill = verb("infill", "Fill the gaps of texts with a checkpoint.")
  infill.add_argument(
    "text", nargs="*", help='such as "The [MASK:12] sat on the [MASK:5]."'
  )
  _generation(infill, "text")

  _plan(verb("plan", "What a run needs, and how fast it can be, on chips elsewhere."))
  _convert(verb("convert", "Convert a checkpoint to the other side: Orbax, PyTorch."))
  _inspect(verb("inspect", "What a checkpoint or a batch holds, or who sees whom."))
  return parser


def _prepare(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--output", type=corpus, metavar="DIR", help="a new directory, or to go on in"
  )
  parser.add_argument(
    "--text", action="store_true", help="keep text, for data.streaming, not tokens"
  )
  parser.add_argument(
    "--workers", type=whole(1, 4096), help="processes that tokenize; default: one a CPU"
  )
  parser.add_argument(
    "--shard-size",
    type=number(0, 1e12),
    default=32,
    metavar="MB",
    help="of text; default: 32",
  )
  parser.add_argument(
    "--check",
    type=place,
    metavar="DIR",
    help="instead: compare the SHA-256 of all files of a prepared directory, which may "
    "be gs://BUCKET/PATH",
  )
  parser.epilog = (
    f"{_CONFIG_HELP} Then: set-diffusion train with the same --config and "
    "--config.data.source=prepared --config.data.directory=DIR. An interrupted "
    "preparation goes on with the same command. To train from a bucket: gcloud storage "
    "rsync -r DIR gs://BUCKET/PATH, and that as data.directory."
  )


def _job(parser: argparse.ArgumentParser) -> None:
  """What several processes need to meet, and what spares them compiling again."""
  job = parser.add_argument_group(
    "several processes", "not needed on TPU pods and under Slurm's srun"
  )
  job.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
  job.add_argument("--processes", type=whole(), metavar="N", help="how many there are")
  job.add_argument("--process", type=whole(), metavar="I", help="this one, from 0")
  job.add_argument(
    "--meeting-timeout",
    type=whole(),
    default=300,
    metavar="SECONDS",
    help="how long to wait for the others; default: 300",
  )
  job.add_argument(
    "--stuck-after",
    type=whole(10),
    metavar="SECONDS",
    help="end with 6 where a step, its input, an evaluation, a save or a restore takes "
    "longer; at least 10, default: ten times the longest so far, at least 300",
  )
  parser.add_argument(
    "--compilation-cache",
    type=path,
    metavar="DIR",
    help="keep compiled programs there from run to run",
  )


def _evaluate(parser: argparse.ArgumentParser) -> None:
  _checkpoint(parser)
  _job(parser)
  parser.add_argument("--draws", type=whole(), help="orders drawn for each sequence")
  parser.add_argument("--sequences", type=whole(), help="only the first ones")
  parser.add_argument("--batch-size", type=whole())
  parser.add_argument("--seed", type=seed, help="of the drawn orders")
  parser.add_argument(
    "--order", help='"left_to_right" or a .npy file of positions: exact log p under it'
  )
  parser.add_argument(
    "--by",
    choices=("token", "rank"),
    help="write nats of single tokens, or of the sets in their order, to --by-output",
  )
  parser.add_argument(
    "--by-output",
    type=path,
    metavar="FILE.jsonl",
    help='a line for each sequence: "sequence"; "position" and "token" (id), or "rank" '
    'and "tokens" (how many); "nats"',
  )
  parser.add_argument(
    "--zero-shot",
    metavar="NAME,...",
    help=f"instead of the run's own text: all, or some of {', '.join(ZERO_SHOT)}",
  )
  parser.add_argument(
    "--zero-shot-data",
    type=path,
    metavar="DIR",
    help="NAME.txt or NAME.jsonl of each corpus, or where TFDS prepared it",
  )
  parser.epilog = _OVERRIDE_HELP


def _convert(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "source",
    type=checkpoint,
    help="any format, detected; also gs://BUCKET/PATH or hf://ORG/NAME[@REVISION]",
  )
  parser.add_argument(
    "destination", type=destination, help="a new directory, or hf://ORG/NAME"
  )
  parser.add_argument(
    "--weights", choices=WEIGHTS, help="default: ema, if there is one"
  )
  parser.add_argument(
    "--dtype", help="float32, bfloat16 or float16; default: as stored"
  )
  parser.add_argument(
    "--shard-size",
    type=number(0, 1e12),
    default=5.0,
    metavar="GB",
    help="of safetensors files",
  )
  parser.add_argument(
    "--verify", action="store_true", help="read the result again, compare every bit"
  )
  parser.add_argument(
    "--evaluation",
    type=path,
    metavar="FILE.json",
    help="figures for the model card, as evaluate --output wrote them",
  )
  _backbone_config(parser)


def _plan(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--topology",
    required=True,
    help="v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:16x16, or gpu:h100x64 and the like",
  )
  parser.add_argument(
    "--slices", type=whole(), default=1, help="TPU slices of --topology"
  )
  parser.add_argument(
    "--vocabulary-size",
    type=whole(2, 2**31 - 1),
    metavar="N",
    help="ids, [MASK] included; default: those of data.tokenizer",
  )
  parser.add_argument("--json", type=path, metavar="FILE.json")
  parser.epilog = _CONFIG_HELP


def _inspect(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "checkpoint", nargs="?", type=checkpoint, help="any supported format"
  )
  _backbone_config(parser)
  parser.add_argument("--mask", action="store_true", help="draw the mask of --config")
  parser.add_argument("--data", action="store_true", help="show a batch of --config")
  parser.add_argument("--rows", type=whole(0), default=3, help="of that batch to print")
  parser.add_argument("--length", type=whole(), default=16, help="positions to draw")
  parser.add_argument("--seed", type=seed, default=0, help="of the drawn order")
  parser.add_argument(
    "--methods", help="comma-separated, side by side; default: the configuration's"
  )
  parser.add_argument(
    "--output",
    type=path,
    help="JSON file, or with --mask a PNG (needs matplotlib); else: terminal",
  )
  parser.epilog = _CONFIG_HELP


def _generation(parser: argparse.ArgumentParser, field: str) -> None:
  """What `sample` and `infill` have in common."""
  _checkpoint(parser)
  parser.add_argument(
    "--input",
    type=source,
    metavar="FILE",
    help=f'texts, one a line, or JSON lines with "{field}"; - for standard input',
  )
  parser.add_argument(
    "--num", type=whole(1, 10**6), default=1, help="samples of each text"
  )
  parser.add_argument(
    "--batch-size", type=whole(1), default=64, help="texts at once; changes no result"
  )
  parser.add_argument("--seed", type=seed, default=0)
  parser.add_argument("--commit", choices=COMMITS)
  parser.add_argument("--tokens-per-step", type=number())
  parser.add_argument(
    "--threshold", type=number(), help="commit what is so likely, too"
  )
  parser.add_argument("--window", type=whole(), help="candidates of a step")
  parser.add_argument(
    "--drafts",
    type=whole(),
    help="speculative decoding of sets: tokens drafted at once",
  )
  parser.add_argument("--temperature", type=number(), help="0: the likeliest token")
  parser.add_argument("--top-k", type=whole())
  parser.add_argument("--top-p", type=number())
  parser.add_argument("--stop", action="append", help="ends a text; several times")
  parser.add_argument("--stop-regex", help="ends a text where it matches")
  parser.add_argument(
    "--stop-repeats", type=whole(2), help="so many equal tokens end it"
  )
  parser.add_argument(
    "--stop-confidence", metavar="N:P", help="N tokens less likely than P on average"
  )
  parser.add_argument(
    "--stop-entropy", metavar="N:NATS", help="N tokens whose frequencies have less"
  )
  parser.add_argument("--stream", action="store_true", help="watch the masks turn")
  parser.epilog = _OVERRIDE_HELP


def _checkpoint(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--checkpoint",
    required=True,
    type=checkpoint,
    help="a work directory, one of its checkpoints/STEP, or a PyTorch-format "
    "directory; each may be gs://BUCKET/PATH, the last hf://ORG/NAME[@REVISION]",
  )
  parser.add_argument("--weights", choices=WEIGHTS, help="default: ema")
  _backbone_config(parser)
  parser.add_argument("--output", type=path, help="JSON file for the figures")


def _backbone_config(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--backbone-config",
    type=path,
    metavar="FILE.json",
    help="Qwen3's own configuration, of a published directory with an unknown one",
  )
