"""Keys of the protection 'sealed', from the command line.

    python -m ppcmi_jax.keyring --help

Prints names, epochs and key ids, never a byte of a key. Bad input is one line
on stderr and exit code 2.
"""

import argparse
import inspect
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

from ppcmi_jax import keyring
from ppcmi_jax.keyring import epochs, files, kept, listing

VARIABLE = 'PPCMI_JAX_SECRETS'
PROGRAM = 'python -m ppcmi_jax.keyring'

_BLOCKS = (
  'Flash memory, snapshots and backups may keep old blocks: see to them too.'
)
_DESCRIPTION = """\
Makes, carries, replaces, erases and lists the keys of the protection 'sealed'.

Each hospital shares one key with the server, a file of one line. Whoever can
read it reads what the hospital sends: its folder must be open to its owner
alone (mode 0700), on an encrypted disk, and in no backup.

A key's life:
  1. hospital   enrol     makes the key, and an export: its copy for the server
  2. by hand              the export goes to the server, never by e-mail
  3. server     import    takes the key in and erases the export carried there
                storage   makes the server's own key, once
  4. hospital   erase     erases the export that stayed behind
  5. both       rotate    at agreed times: the next key; the old one is erased
     server     storage   with --rotate, the same of the server's own key
  6. both       erase     the keys of who leaves; then at the server, with
                          --kept, those of what it kept to train from
"""
_EPILOG = f"""\
--folder may be left out where the environment variable {VARIABLE}
names it. '{PROGRAM} COMMAND --help' explains a command.
docs/keys.md says what to do, also after a loss or a theft.
"""


class _Parser(argparse.ArgumentParser):
  """One whose errors become our one line."""

  def error(self, message):
    raise ValueError(f'{message}; see {self.prog} --help')


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    arguments: of the command line; None takes those of this process.

  Returns:
    The exit code: 0, or 2 after one line on stderr that says what is wrong.
  """
  try:
    options = _parser().parse_args(arguments)
    return options.call(options)
  except (ValueError, OSError) as error:
    print(f'keyring: {" ".join(str(error).split())}', file=sys.stderr)
    return 2


def _enrol(options):
  """Makes a client's first key, and its export: the copy for the server.

  A missing folder is made. Either file opens all that the client sends from
  now on, in later epochs too.
  """
  folder = _folder(options)
  path, export = epochs.enrol(folder, options.client)
  key = epochs.load(path)
  carried = f'{options.client}.export'
  print(f'client {key.client} is enrolled: epoch {key.epoch}')
  print(f'  key id  {key.key_id} (public)')
  print(f'  key     {path}')
  print(f'  export  {export}')
  print(
    'What to do now:\n'
    '  1. Carry the export to the server by a way that you both trust: in\n'
    '     person on an encrypted stick, or over ssh. Never by e-mail.\n'
    '  2. The operator of the server runs, with its own folder,\n'
    f'       {PROGRAM} import --folder=FOLDER --export={carried}\n'
    '     Compare the key id that it prints with the one above, by telephone.\n'
    '  3. Then erase the export here, and wherever else it went:\n'
    f'       {PROGRAM} erase {shlex.quote(export)}'
  )
  return 0


def _import(options):
  """Takes in the key that a hospital exported, and erases the export.

  The folder is the server's own, and is made where it is missing.
  """
  folder = _folder(options)
  found = epochs.load(options.export)
  if options.client not in (None, found.client):
    todo = 'ask for the right file; nothing was taken in'
    raise files.error(
      ascii(options.export),
      f'a key of client {options.client!r}',
      f'one of {found.client!r}',
      todo,
    )
  path = epochs.import_key(folder, options.export)
  key = epochs.load(path)
  print(f'the key of client {key.client} was taken in: epoch {key.epoch}')
  print(f'  key id  {key.key_id} (public)')
  print(f'  key     {path}')
  print(f'  export  {os.path.abspath(options.export)} (erased)')
  print(
    'Compare the key id with what enrol printed at the client, by telephone.\n'
    'If they differ, it was exchanged on its way: erase this key. If they\n'
    'agree, tell the client to erase its export.'
  )
  return 0


def _storage(options):
  """Makes the server's own key, storage.key, which it trains with.

  It wraps the keys of the contributions that the server keeps, and is shared
  with nobody. Without it they open no more, and clients contribute again.

  --rotate makes another one, wraps what is kept anew and erases the old one.
  Programs that are running go on with the new one. Stopped on its way it has
  lost nothing: the same command goes on.
  """
  folder = _folder(options)
  path = os.path.join(folder, kept.STORAGE)
  if options.rotate:
    count = kept.rotate(folder)
    print(f'the server has a new key of its own: {path}')
    print(f'  key id  {keyring.key_id(keyring.load(path))} (public)')
    print(f'  kept    {count} keys of contributions are under it')
    print(f'The old one was erased.\n{_BLOCKS}')
    return 0
  files.make_private_folder(folder)
  secret = keyring.create(path)
  print(f'the server has a key of its own: {path}')
  print(f'  key id  {keyring.key_id(secret)} (public)')
  return 0


def _rotate(options):
  """Goes on to the key of a later epoch and erases the one before.

  A later theft then opens no earlier message. Both sides do it at an agreed
  time, when no message is on its way; programs that are running go on with the
  new key. It heals no theft, as a thief can go on to the next key too: erase
  the key on both sides and enrol again.
  """
  path = _key_of(options)
  before = epochs.load(path).epoch
  key = epochs.rotate(path, options.epoch)
  if key.epoch == before:
    print(f'client {key.client} was at epoch {before} already')
  else:
    print(
      f'client {key.client} is at epoch {key.epoch}; the key of epoch {before} '
      'was erased:\n'
      'messages of that epoch that were not opened yet never will be'
    )
  print(f'  key id  {key.key_id} (public)')
  print(
    'The other side must go to the same epoch and print the same key id:\n'
    f'  {PROGRAM} rotate --folder=FOLDER --client={key.client} '
    f'--epoch={key.epoch}'
  )
  return 0


def _erase(options):
  """Overwrites files of keys with random bytes and deletes them.

  Messages under an erased key open no more, by programs that are running
  neither, and nobody can restore it. What a server kept of a client to train
  from opens by its storage.key all the same, until --kept erases that. It is
  best effort: flash memory, snapshots and backups may keep old blocks.
  """
  if (options.path is None) == (options.client is None):
    raise ValueError('erase: expected either the PATH of a file or --client')
  if options.kept:
    return _erase_kept(options)
  if options.path is not None:
    paths = [options.path]
  else:
    key = pathlib.Path(_key_of(options, kinds=('.epoch', '.export')))
    paths = [key.with_name(f'{options.client}.epoch')]
    paths += [key.with_name(f'{options.client}.export')]
    paths = [path for path in paths if os.path.lexists(path)]
  for path in paths:
    epochs.erase(path)
    print(f'erased: {path}')
  if options.client is not None:
    epochs.erase_strays(_folder(options), options.client)
  print(_BLOCKS)
  return 0


def _erase_kept(options):
  if options.client is None:
    raise ValueError('erase: expected --client with --kept, found PATH')
  folder, client = _folder(options), options.client
  count = kept.erase(folder, client)
  print(f'erased: {count} kept keys of contributions of client {client}')
  key = os.path.join(folder, f'{client}.epoch')
  if os.path.lexists(key):
    print(
      f'The key of the client is still here: {key}\n'
      'With it the server opens messages of its epoch again, and keeps their\n'
      'keys again, unless you delete those messages or erase that key, too.'
    )
  print(_BLOCKS)
  return 0


def _show(options):
  """Lists the files of keys in a folder, without a byte of a key.

  Key ids are public: equal ones on both sides mean equal keys. What the server
  keeps of a client is counted. The exit code is 2 if a file is missing, damaged
  or open to others.
  """
  lines, is_well = listing.of(_folder(options))
  print('\n'.join(lines))
  return 0 if is_well else 2


def _folder(options):
  folder = options.folder or os.environ.get(VARIABLE)
  if not folder:
    raise ValueError(
      f'--folder: expected the folder of keys, found none; name it, or set '
      f'the environment variable {VARIABLE}'
    )
  return os.path.abspath(folder)


def _key_of(options, kinds=('.epoch',)):
  """Returns the path of a known client's key."""
  folder = pathlib.Path(_folder(options))
  files.check_folder(str(folder))
  known = sorted({p.stem for p in folder.iterdir() if p.suffix in kinds})
  if options.client not in known:
    todo = 'check the name and the folder, or enrol the client'
    expected = f'a client with a key in {str(folder)!r}'
    expected += f' ({", ".join(known) or "which has none"})'
    raise files.error('--client', expected, ascii(options.client), todo)
  return str(folder / f'{options.client}.epoch')


def _parser():
  parser = _Parser(
    prog=PROGRAM,
    description=_DESCRIPTION,
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(
    required=True, metavar='COMMAND', title='commands'
  )

  def add(name, call, summary):
    command = commands.add_parser(
      name,
      help=summary,
      description=inspect.cleandoc(call.__doc__),
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    command.set_defaults(call=call)
    command.add_argument(
      '--folder', help=f'of the keys; default: the variable {VARIABLE}'
    )
    return command.add_argument

  option = add(
    'enrol', _enrol, 'at the hospital: make a key, and its copy for the server'
  )
  option('--client', required=True, help='name: letters, digits, dots, _ and -')
  option = add('import', _import, "at the server: take in a hospital's export")
  option('--export', required=True, help='the file carried here')
  option('--client', help='refuse the key of any other client')
  option = add('storage', _storage, 'at the server, once: make its own key')
  option(
    '--rotate',
    action='store_true',
    help='make another one, and wrap anew what is kept',
  )
  option = add('rotate', _rotate, 'at both: the next key; erase the old one')
  option('--client', required=True, help='whose key')
  option(
    '--epoch',
    type=int,
    help='to go on to, the same on both sides, so that repeating the command '
    'does no harm; default: the next',
  )
  option = add('erase', _erase, 'destroy an export, or keys of a client')
  option('path', nargs='?', metavar='PATH', help='one file of keys')
  option('--client', help="this client's key and export in the folder")
  option(
    '--kept',
    action='store_true',
    help='at the server, with --client: instead of those, what it keeps of '
    'the client to train from',
  )
  add('show', _show, 'list keys and exports, and what is wrong with them')
  return parser


if __name__ == '__main__':
  sys.exit(main())
