"""Documents of a data set that TFDS has prepared."""

import contextlib
import itertools
from collections.abc import Iterator

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.data.files import record_texts, some_text
from set_diffusion_jax.errors import UserError


class TfdsTexts:
  """The texts of a split of a data set that TFDS prepared as array_record.

  Record i is documents i, or 2 i and 2 i + 1 with cut=prompt.
  """

  def __init__(self, config: DataConfig, side: str):
    self.config = config
    self.split = config.train_split if side == "train" else config.validation_split
    self.where = f'data.name = "{config.name}", split "{self.split}"'
    import tensorflow_datasets as tfds

    with self._explained():
      self._records = tfds.data_source(
        config.name, split=self.split, data_dir=config.directory, download=False
      )

  @property
  def digest(self) -> str:
    """Tells data sets apart by their names and sizes; the text is not read for it."""
    return f"{self._records.__class__.__name__} {self.where}: {len(self)} records"

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> str:
    """The text of a record, where a record has one."""
    return self._of(index)[0]

  def __iter__(self) -> Iterator[str]:
    every = itertools.chain.from_iterable(map(self._of, range(len(self))))
    yield from some_text(self.where, every)

  def _of(self, index: int) -> list[str]:
    with self._explained():
      record = self._records[index]
    return list(record_texts(self.config, record, self.where))

  @contextlib.contextmanager
  def _explained(self):
    """What TFDS raises is of many kinds, and often misleading."""
    try:
      yield
    except Exception as error:
      reason = (str(error).strip() or repr(error)).splitlines()[0]
      raise UserError(
        f"{self.where}: not prepared as array_record in data.directory = "
        f'"{self.config.directory}" ({reason[:120]})'
      ) from None
