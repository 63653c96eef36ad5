"""What a campaign has found so far, so that a stopped one goes on.

privacy.json          the cells, and of which networks
privacy_examples.npz  what attackers drew
"""

import io
import json
import os
import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np

from ppcmi_jax import checkpoints, workdir

RESULTS, EXAMPLES = 'privacy.json', 'privacy_examples.npz'
_DAMAGED = (
  OSError,
  ValueError,
  KeyError,
  TypeError,
  zipfile.BadZipFile,
  zlib.error,
)
VERSION = 7  # of the attacks; raise it where their figures change


class Notebook:
  """Cells and drawings as they come, in a folder or in memory alone.

  What a folder holds of other networks or earlier attacks, or damaged, is left
  behind.

  Args:
    folder: to keep `RESULTS` and `EXAMPLES` in, or None.
    run: whose image autoencoders the figures are of.
  """

  def __init__(self, folder: str | os.PathLike | None, run: Any):
    self._cells, self._drawn = {}, {}
    self._folder = None if folder is None else pathlib.Path(folder)
    self._digest = checkpoints.digest(
      [hospital.state.image for hospital in run.hospitals.values()]
    )
    if self._folder is None or not (self._folder / RESULTS).exists():
      return
    try:
      kept = json.loads((self._folder / RESULTS).read_text())
      if (kept['networks'], kept['version']) == (self._digest, VERSION):
        self._cells = kept['cells']
        with (
          open(self._folder / EXAMPLES, 'rb') as file,
          np.load(file) as drawn,
        ):
          self._drawn = dict(drawn)
    except _DAMAGED:
      self._cells, self._drawn = {}, {}  # damaged: attack anew

  def read(self, name: str, protection: str) -> dict[str, Any] | None:
    """Returns the cell of an attack against a protection, or None."""
    return self._cells.get(f'{name}|{protection}')

  def draw(self, key: str, drawn: np.ndarray) -> None:
    """Keeps a drawing; it is written with the next cell."""
    self._drawn[key] = drawn

  def write(self, name: str, protection: str, cell: dict[str, Any]) -> None:
    """Keeps a cell, and writes all that is kept, whole or not at all."""
    self._cells[f'{name}|{protection}'] = cell
    if self._folder is None:
      return
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **self._drawn)
    kept = {'version': VERSION, 'networks': self._digest, 'cells': self._cells}
    text = json.dumps(kept)
    # Drawings first: whatever has a cell has its drawing.
    workdir.write_bytes(self._folder / EXAMPLES, buffer.getvalue())
    workdir.write_text(self._folder / RESULTS, text)
