"""Queued resources of Cloud TPU, as gcloud shows them, in place of `subprocess.run`.

The rules are those of https://cloud.google.com/tpu/docs/queued-resources and of its
reference: a name is there once; SUSPENDED and FAILED stay until the resource is
deleted; deleting takes a while (DELETING), and is refused without --force where there
may be machines.
"""

import json
import subprocess

STATES = (
  "CREATING",
  "ACCEPTED",
  "WAITING_FOR_RESOURCES",
  "PROVISIONING",
  "ACTIVE",
  "SUSPENDING",
  "SUSPENDED",
  "FAILED",
  "DELETING",
)


class Killed(BaseException):
  """Who gave a command was killed."""


class Cloud:
  """One name of a queued resource, and one object in a bucket.

  Attributes:
    lives: for each time that the resource is created the states that it goes through,
      one a tick. A number is the code with which the run ends there, which the first
      host writes into the object before it deletes the resource.
    state: of the resource; None: there is none.
    end: the contents of the object; None: there is none.
    gives_back: whether the first host may delete the resource.
    commands: what was asked, a word each.
    faults: what happens instead of a command, or after it, by the command's number:
      text on the standard error with exit code 1, or ("before" or "after", Killed).
  """

  def __init__(self, lives=(), state=None, end=None):
    self.lives = [list(life) for life in lives]
    self.state, self.end = state, end
    self.gives_back = True
    self.commands: list[str] = []
    self.faults: dict = {}
    self._coming: list = []

  def tick(self, seconds: float = 0.0) -> None:
    """Time goes by."""
    if self.state == "DELETING":
      self._coming = self._coming or [None]
    if not self._coming:
      return
    self.state = self._coming.pop(0)
    if isinstance(self.state, int):
      self.end, self.state = f"{self.state}\nstep 1\nerror: why\n", "ACTIVE"
      if self.gives_back:
        self.state, self._coming = "DELETING", ["DELETING", None]

  def run(self, words, input, text, capture_output, check, **named):
    """What `subprocess.run` does with a command of gcloud."""
    assert words[0] == "gcloud" and text and capture_output and not check
    verb = words[2] if words[1] == "storage" else words[4]
    fault = self.faults.get(len(self.commands))
    self.commands.append(verb)
    if fault == ("before", Killed):
      raise Killed
    if isinstance(fault, str):
      return subprocess.CompletedProcess(words, 1, "", f"ERROR: (gcloud) {fault}\n")
    answer = getattr(self, f"_{verb}")(words, input)
    if fault == ("after", Killed):
      raise Killed
    output, error = answer if isinstance(answer, tuple) else (answer, "")
    return subprocess.CompletedProcess(words, int(bool(error)), output, error)

  def _describe(self, words, input):
    if self.state is None:
      return "", "ERROR: (gcloud) NOT_FOUND: Resource 'mine' was not found\n"
    state = {"state": self.state}
    if self.state == "FAILED":
      state["failedData"] = {"error": {"code": 8, "message": "no more capacity"}}
    return json.dumps({"name": "mine", "state": state})

  def _create(self, words, input):
    if self.state is not None:
      return "", "ERROR: (gcloud) ALREADY_EXISTS: Resource 'mine' already exists\n"
    assert input.startswith("#!/bin/bash\n")
    self._coming = self.lives.pop(0)
    self.tick()
    return ""

  def _delete(self, words, input):
    if self.state is None:
      return "", "ERROR: (gcloud) NOT_FOUND: Resource 'mine' was not found\n"
    if self.state == "DELETING":
      return "", "ERROR: (gcloud) FAILED_PRECONDITION: 'mine' is being deleted\n"
    assert "--force" in words and "--async" in words
    self.state, self._coming = "DELETING", ["DELETING", None]
    return ""

  def _cat(self, words, input):
    if self.end is None:
      return "", f"ERROR: (gcloud) The following URLs matched no objects: {words[-1]}\n"
    return self.end
