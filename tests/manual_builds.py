"""Builds a data set of a user's folder, or says why it cannot be built."""

import pytest

from ppcmi_jax import datasets


def prepare(name, raw, *, data_dir=None, **options):
  """Prepares a registered data set of a folder, beside it if not elsewhere.

  Returns (builder, {case: example}, what it warned of in one line).
  """
  lines = []
  builder = datasets.prepare(
    name,
    data_dir=data_dir or raw.parent / 'data',
    manual_dir=raw,
    options=options,
    warn=lines.append,
  )
  examples = {e['case'].decode(): e for e in builder.as_data_source('all')}
  return builder, examples, ' '.join(lines)


def said(caplog, name):
  """Returns the lines on a data set, but for that on where its copy lies."""
  return [
    line
    for line in caplog.messages
    if name in line and 'now lie in' not in line
  ]


def functions(builder_class, config_class):
  """Returns (build, prepare, refusal), each of (folder, tmp_path, **options).

  `build` returns the prepared builder, `prepare` its examples with text as
  str, `refusal` the one line of the ValueError that has to come.
  """

  def build(folder, tmp_path, **options):
    config = config_class(manual_dir=str(folder), **options)
    builder = builder_class(data_dir=tmp_path / 'prepared', config=config)
    builder.download_and_prepare()
    return builder

  def prepare(folder, tmp_path, **options):
    builder = build(folder, tmp_path, **options)
    return [
      {k: v.decode() if isinstance(v, bytes) else v for k, v in e.items()}
      for e in builder.as_data_source('all')
    ]

  def refusal(folder, tmp_path, **options):
    with pytest.raises(ValueError) as caught:
      build(folder, tmp_path, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)

  return build, prepare, refusal
