"""Where pictures are drawn: figures that go to a PNG without a display."""

import contextlib
import io
import pathlib
from collections.abc import Iterator, Sequence

from set_diffusion_jax.errors import UserError
from set_diffusion_jax.storage.disk import write_whole


@contextlib.contextmanager
def canvas(
  path: pathlib.Path,
  size: tuple[float, float],
  columns: int,
  width_ratios: Sequence[float] | None = None,
) -> Iterator[Sequence]:
  """Axes side by side; what is drawn on them is saved as PNG at the end.

  Args:
    path: of the PNG.
    size: of the whole picture, in inches.
    columns: how many axes.
    width_ratios: of the axes; None: all alike.

  Raises:
    UserError: matplotlib is not installed.
  """
  try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
  except ImportError:
    raise UserError("a picture needs matplotlib; pip install matplotlib") from None
  figure = Figure(figsize=size, layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots(1, columns, squeeze=False, width_ratios=width_ratios)[0]
  yield axes
  picture = io.BytesIO()
  figure.savefig(picture, dpi=110, format="png", metadata={"Software": None})
  write_whole(path, picture.getvalue())
