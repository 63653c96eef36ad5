"""What lies in a folder of keys, and what is wrong with it, without a key.

>>> import tempfile
>>> from ppcmi_jax import keyring
>>> from ppcmi_jax.keyring import listing
>>> with tempfile.TemporaryDirectory() as folder:
...   _ = keyring.create(f'{folder}/storage.key')
...   lines, is_well = listing.of(folder)
>>> len(lines), is_well
(3, True)
"""

import os
import pathlib
import stat

from ppcmi_jax import keyring
from ppcmi_jax.keyring import epochs, files, kept, ledger

_HEAD = ('client', 'epoch', 'key id', 'mode', 'file')
_UNKNOWN = ('?', '?', '?')


def of(folder: str | os.PathLike[str]) -> tuple[list[str], bool]:
  """Lists the files of keys in a folder.

  Args:
    folder: of a hospital's keys, of a server's, or of a run's.

  Returns:
    (lines to print: a table, what is kept, and notes; whether no file is
    missing, damaged, open to others or of another name than its key).

  Raises:
    ValueError: for a folder that is missing or open to others.
  """
  folder = pathlib.Path(folder)
  files.check_folder(str(folder))
  rows, remarks, faults = [], [], []
  for path in sorted(folder.iterdir()):
    is_stray = files.STRAY.fullmatch(path.name) is not None
    if path.suffix not in ('.epoch', '.export', '.key') and not is_stray:
      continue
    try:
      row = _described(path)
    except ValueError as error:
      row = _UNKNOWN
      if not is_stray:
        faults.append(str(error))
    rows.append((*row, f'{stat.S_IMODE(path.lstat().st_mode):04o}', path.name))
    if is_stray:
      remarks.append(f'{path.name}: left by a crash, erase it')
    if path.suffix == '.export':
      remarks.append(
        f'{path.name}: a copy of a key, not erased yet; '
        'erase it once the server has taken it in'
      )
    if path.suffix == '.epoch':
      faults += _faults_of(path, row[0])
    if path.name in kept.UNFINISHED:
      faults.append(f'{path.name}: a rotation was stopped; {kept.FINISH}')
  num_kept = {client: len(p) for client, p in kept.of_clients(folder).items()}
  if num_kept and not (folder / kept.STORAGE).exists():
    faults.append(
      f'{kept.STORAGE}: missing, so what is kept opens no more; docs/keys.md '
      'says what to do'
    )
  lines = [f'files of keys in {folder}: {len(rows) or "none"}']
  lines += _table([_HEAD, *rows]) if rows else []
  lines += [
    f'kept of client {client}: {count} keys of contributions'
    for client, count in num_kept.items()
  ]
  lines += [f'note: {note}' for note in (*faults, *remarks)]
  return lines, not faults


def _described(path):
  """Returns the client, the epoch and the key id in a file."""
  if path.suffix == '.key':
    return '-', '-', keyring.key_id(keyring.load(path))
  key = epochs.load(path)
  return key.client, str(key.epoch), key.key_id


def _faults_of(path, client):
  """Returns what is wrong with an epoch key's name and its ledger."""
  faults = []
  if client not in ('?', path.stem):
    faults.append(f'{path.name}: holds a key of client {client}; rename it')
  try:
    ledger.Ledger(path)
  except ValueError as error:
    faults.append(str(error))
  return faults


def _table(rows):
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '
    + '  '.join(
      f'{cell:{width}}' for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    for row in rows
  ]
