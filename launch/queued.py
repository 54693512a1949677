"""A queued resource of Cloud TPU: a look at it, and the one thing that this calls for.

Nothing is remembered from one look to the next. What is to be done follows from what
the cloud answers and from the object which the first host writes into the run's bucket
when the run has ended, before it deletes the resource. So whoever looks may be killed
at any moment, and started again, or twice.
"""

import dataclasses
import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable

from set_diffusion_jax.launch import command as shared

EVERY = 60.0  # seconds from one look to the next
WITHIN = 600.0  # seconds for a command of gcloud
GONE = ("SUSPENDED", "FAILED")  # as it stays, once preempted or not had in time
# What gcloud says where the same would be refused again.
LASTING = (
  "PERMISSION_DENIED|INVALID_ARGUMENT|UNAUTHENTICATED|HTTPError 40[13]|"
  "does not have permission|have an active account|a valid project"
)


class Refused(Exception):
  """A command of gcloud failed.

  Attributes:
    code: its exit code.
    lasting: the same would happen again.
  """

  def __init__(self, ended: subprocess.CompletedProcess):
    lines = ended.stderr.strip().splitlines() or [f"ended with {ended.returncode}"]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    super().__init__((errors or lines)[-1].removeprefix("ERROR: "))
    self.code = ended.returncode
    self.lasting = ended.returncode == 2 or bool(re.search(LASTING, ended.stderr))


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked for.

  Attributes:
    name: of the resource.
    project: that pays for it.
    zone: where it is.
    create: the command that asks for it.
    startup: the script that each host runs, the standard input of `create`.
    end: the object with the code of the run, when it has ended, and the last lines that
      it printed; None: there is none.
  """

  name: str
  project: str
  zone: str
  create: list[str]
  startup: str
  end: str | None

  def describe(self) -> list[str]:
    """The command that asks how it stands."""
    words = "gcloud compute tpus queued-resources describe".split()
    place = [f"--project={self.project}", f"--zone={self.zone}"]
    return [*words, self.name, *place, "--format=json"]

  def read_end(self) -> list[str]:
    """The command that prints how the run ended."""
    return ["gcloud", "storage", "cat", self.end or ""]


def delete(name: str, project: str, zone: str) -> list[str]:
  """The command that gives the machines of a resource back, and the resource."""
  words = "gcloud compute tpus queued-resources delete".split()
  place = [f"--project={project}", f"--zone={zone}"]
  return [*words, name, *place, "--quiet", "--force", "--async"]


def look(request: Request) -> tuple[str, int | None]:
  """Asks once, and does what this calls for, if anything.

  Returns:
    A line that says what was found and done; the code of the run if it has ended and
    nothing is left of the resource.

  Raises:
    Refused: gcloud could not do something.
  """
  # In this order: the object is there before the resource is not.
  answer = _gcloud(request.describe(), absent="NOT_FOUND")
  end = None
  if request.end is not None:
    end = _gcloud(request.read_end(), absent="matched no objects")
  code, *printed = (end or "").splitlines() or [""]
  ended = f"the run ended with {code}"
  if answer is None and end is not None:
    last = f": {printed[-1]}" if printed else ""
    again = f"remove {request.end} to start it again"
    if not code.isdecimal():
      shared.fail(f"{request.end}: does not say how the run ended; {again}")
    return f"{ended}{last} ({again})", int(code)
  if answer is None:
    _gcloud(request.create, text=request.startup)
    return "asked for", None
  found = _state(answer)
  state = found.get("state", "STATE_UNSPECIFIED")
  if state != "DELETING" and (end is not None or state in GONE):
    _gcloud(delete(request.name, request.project, request.zone))
    reason = found.get("failedData", {}).get("error", {}).get("message")
    then = "to be asked for again" if end is None else ended
    return f"{state}{f' ({reason})' if reason else ''}: deleted; {then}", None
  return state, None


def _state(answer: str) -> dict:
  """The state in an answer of `describe`; Refused if it holds none."""
  try:
    found = json.loads(answer)["state"]
    found["state"].upper()
    return found
  except (ValueError, TypeError, LookupError, AttributeError):
    line = f"cannot read what gcloud answers: {answer[:80]!r}"
    raise Refused(subprocess.CompletedProcess([], 1, "", line)) from None


def once(request: Request) -> int:
  """One look; the exit code: of the run if it has ended, of gcloud if that failed."""
  try:
    line, code = look(request)
  except Refused as refusal:
    shared.say(f"{request.name}: {refusal}")
    return refusal.code
  shared.say(f"{request.name}: {line}")
  return code or 0


def watch(request: Request, pause: Callable[[float], None] = time.sleep) -> int:
  """Looks until the run has ended, whatever becomes of its machines; its exit code.

  Args:
    request: what is asked for, with an object for the end.
    pause: waits for so many seconds.
  """
  said = None
  while True:
    try:
      line, code = look(request)
    except Refused as refusal:
      if refusal.lasting:
        shared.fail(f"{request.name}: {refusal}")
      line, code = f"{refusal}; tried again", None
    if line != said:
      shared.say(f"{time.strftime('%F %T')} {request.name}: {line}")
      said = line
    if code is not None:
      return code
    pause(EVERY)


def show(request: Request) -> None:
  """Prints every command that a look may run; what is no comment asks for it."""
  asked = [request.describe()]
  absent, gone = "Where there is none", f"Where it is {' or '.join(GONE)}"
  if request.end is not None:
    asked.append(request.read_end())
    absent, gone = f"{absent}, nor an end of the run", f"{gone}, or the run has ended"
  rows = ["# Each look asks:", *(f"#   {shlex.join(words)}" for words in asked)]
  words = delete(request.name, request.project, request.zone)
  rows += [f"# {gone}:", f"#   {shlex.join(words)}", f"# {absent}:"]
  shared.show("\n".join([*rows, shared.fed(request.create, request.startup)]))


def _gcloud(words: list[str], absent: str | None = None, text: str = "") -> str | None:
  """What a command prints; None if it fails with an error that says `absent`."""
  try:
    ended = subprocess.run(
      words,
      input=text,
      text=True,
      errors="replace",  # a run prints what it likes
      capture_output=True,
      check=False,
      timeout=WITHIN,
    )
  except FileNotFoundError:
    shared.fail(f"{words[0]}: is not installed on this machine")
  except subprocess.TimeoutExpired:
    line = f"{words[0]} has not answered within {WITHIN:.0f} s"
    raise Refused(subprocess.CompletedProcess(words, 1, "", line)) from None
  if ended.returncode and absent is not None and absent in ended.stderr:
    return None
  if ended.returncode:
    raise Refused(ended)
  return ended.stdout
