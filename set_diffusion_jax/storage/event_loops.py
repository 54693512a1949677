"""Event loops that end in good order when a read or a save of Orbax fails."""

import asyncio
import contextlib


class _Loop(asyncio.SelectorEventLoop):
  """An event loop that cancels what still runs in it when it is closed."""

  def close(self) -> None:
    left = set() if self.is_closed() else asyncio.all_tasks(self)
    for task in left:
      task.cancel()
    try:
      if left:  # the first failure has been raised, the others have the same cause
        self.set_exception_handler(lambda *_: None)
        self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    finally:
      super().close()

  def call_soon_threadsafe(self, callback, *args, context=None):
    """As the base class; what another thread brings after the end is left out."""
    try:
      return super().call_soon_threadsafe(callback, *args, context=context)
    except RuntimeError:
      if not self.is_closed():
        raise


class _Policy(asyncio.DefaultEventLoopPolicy):
  def new_event_loop(self) -> asyncio.AbstractEventLoop:
    return _Loop()


@contextlib.contextmanager
def orderly():
  """Orbax closes its event loop where one of its parts fails and leaves the others.

  Each of them, some thousands, would print a traceback of its own later on.
  """
  before = asyncio.get_event_loop_policy()
  asyncio.set_event_loop_policy(_Policy())
  try:
    yield
  finally:
    asyncio.set_event_loop_policy(before)
