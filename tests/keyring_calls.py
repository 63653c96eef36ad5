"""Calls of `python -m ppcmi_jax.keyring` in this process, for its tests."""

import re

from ppcmi_jax.keyring import __main__ as commands


def caller(capsys, monkeypatch):
  """Returns a function: arguments -> (exit code, stdout, stderr)."""
  monkeypatch.delenv(commands.VARIABLE, raising=False)

  def run(*arguments):
    code = commands.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()

  return run


def refuser(call, secret='[0-9a-f]{64}'):
  """Returns a function that checks for one line on stderr and exit code 2.

  Args:
    call: of `caller`.
    secret: what must not be in that line, a regular expression.
  """

  def run(message, *arguments):
    code, out, err = call(*arguments)
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert err.startswith('keyring: ') and re.search(message, err)
    assert not re.search(secret, err)

  return run
