"""The ways a command ends early."""


class UserError(Exception):
  """A mistake in a configuration, a path or an input: one line, exit code 2.

  The message names the field, its value, and what would be right.
  """


class NonFiniteError(Exception):
  """The loss or its gradient became NaN or infinite: exit code 4."""


class Preempted(Exception):
  """The run was asked to stop and has saved where it is: exit code 42.

  Attributes:
    step: what was saved.
  """

  def __init__(self, step: int):
    super().__init__(f"stopped at step {step}, which is saved")
    self.step = step
