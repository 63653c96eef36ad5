import csv
import html.parser
import io
import math

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from ppcmi_jax import tables

NAN = float('nan')
WRITERS = tables.text, tables.csv, tables.latex, tables.html


def make(*rows, headers=('client', 'Dice'), **kwargs):
  return tables.Table('dice', 'Dice', headers, rows, **kwargs)


def read_csv(table):
  return list(csv.reader(io.StringIO(tables.csv(table), newline='')))


class Reader(html.parser.HTMLParser):
  """Reads the rows of a table: of each cell its tag, attributes and text."""

  def __init__(self, source):
    super().__init__()
    self.tags, self.rows = [], []
    self.feed(source)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    if tag == 'tr':
      self.rows.append([])
    elif tag in ('td', 'th'):
      self.rows[-1].append([tag, dict(attributes), ''])

  def handle_data(self, data):
    if self.tags[-1] in ('td', 'th') and self.rows[-1]:
      self.rows[-1][-1][2] += data

  def handle_endtag(self, tag):
    self.tags.append(f'/{tag}')


@pytest.mark.parametrize(
  'cell, expected',
  [
    (0.5, '0.500'),
    (-0.0001, '0.000'),
    (-0.5, '-0.500'),
    (NAN, '-'),
    (math.inf, 'inf'),
    (None, '-'),
    (3, '3'),
    (True, 'yes'),
    (np.bool_(False), 'no'),
    ('liver', 'liver'),
    (np.float32(0.25), '0.250'),
    (np.int64(7), '7'),
    (jnp.float32(0.25), '0.250'),
    (np.array(NAN), '-'),
    (tables.Interval(0.5, 0.25, 0.75), '0.500 (0.250 to 0.750)'),
    (tables.Interval(0.5, NAN, NAN), '0.500'),
    (tables.Interval(NAN, NAN, NAN), '-'),
    (tables.Interval(np.float32(1), np.nan, 1), '1.000'),
  ],
)
def test_show(cell, expected):
  assert tables.show(cell) == expected


def test_text_says_title_and_notes_where_they_are():
  assert tables.text(make(('A', 0.5), notes='n = 1')).splitlines() == [
    'Dice',
    '  client    Dice',
    '--------  ------',
    '       A   0.500',
    'n = 1',
  ]
  assert tables.text(make(('A', 1))._replace(title='')).startswith('  client')


def test_csv_keeps_every_digit_and_widens_intervals():
  third = 1 / 3
  table = make(
    ('A', third, tables.Interval(third, 0.1, NAN)),
    ('B, "C"', None, 0.5),
    ('D\nE', NAN, None),
    headers=('client', 'Dice', 'IoU'),
  )
  assert read_csv(table) == [
    ['client', 'Dice', 'IoU', 'IoU low', 'IoU high'],
    ['A', repr(third), repr(third), '0.1', ''],
    ['B, "C"', '', '0.5', '', ''],
    ['D\nE', '', '', '', ''],
  ]
  assert read_csv(make()) == [['client', 'Dice']]


@pytest.mark.parametrize(
  'cell, expected',
  [
    ('=1+1', "'=1+1"),
    ('@SUM(A1)', "'@SUM(A1)"),
    ('-2+3', "'-2+3"),
    ('\t=1', "'\t=1"),
    ('\r=1', "'\ufffd=1"),
    ('-2.5', '-2.5'),
    ('+1e-3', '+1e-3'),
    ('-', '-'),
    (-2.5, '-2.5'),
    ('a=1', 'a=1'),
  ],
)
def test_csv_holds_no_formula(cell, expected):
  assert read_csv(make((cell, 0.5)))[1][0] == expected


def test_latex_escapes_and_aligns_numbers():
  source = tables.latex(
    make(
      ('A_1 & 50 %', 'liver', 0.5),
      ('\\input{x}', '$<|>^~#"', NAN),
      headers=('client', 'structure', 'Dice'),
      notes='n = 1',
    )
  )
  assert r'\begin{tabular}{llr}' in source
  assert r'A\_1 \& 50 \% & liver & 0.500 \\' in source
  assert (
    r'\textbackslash{}input\{x\} & \$\textless{}\textbar{}\textgreater{}'
    r'\textasciicircum{}\textasciitilde{}\#\textquotedbl{} & - \\'
  ) in source
  assert r'\caption{Dice n = 1}' in source and r'\label{tab:dice}' in source
  assert r'\caption{Dice}' in tables.latex(make(('A', 1)))
  plain = source.replace(r'\{', '').replace(r'\}', '')
  assert plain.count('{') == plain.count('}')


def test_html_says_what_sorts_where():
  table = make(
    ('10', tables.Interval(0.5, 0.4, 0.6), 'x', '9.5', True, np.int32(3)),
    ('B', NAN, '1', '10.25', False, -math.inf),
    headers=('site', 'Dice', 'mixed', 'ms', 'missed', 'n'),
  )
  head, *rows = Reader(tables.html(table)).rows
  numeric = [False, True, False, True, False, True]
  for row in (head, *rows):
    found = [attributes.get('class') == 'number' for _, attributes, _ in row]
    assert found == numeric
  orders = [[cell[1].get('data-value') for cell in row] for row in rows]
  assert orders == [
    ['10', '0.5', None, '9.5', None, '3'],
    [None, None, '1', '10.25', None, '-Infinity'],
  ]
  assert [tag for tag, *_ in rows[0]] == ['th'] + 5 * ['td']
  assert rows[0][0][1]['scope'] == 'row' and head[0][1]['scope'] == 'col'


def test_html_of_long_words_and_many_columns():
  [_, row] = Reader(tables.html(make(('A', 'word ' * 20)))).rows
  assert 'class' not in row[0][1] and row[1][1]['class'] == 'long'
  headers = [f'h{i}' for i in range(11)]
  assert '"table wide"' in tables.html(make(headers, headers=headers))
  assert '"table wide"' not in tables.html(make(('A', 1)))


def test_html_of_two_names_has_two_ids():
  names = 'a/b', 'a b', 'a-b', 'a%20b', 'a"b', '\ud800'
  sources = [tables.html(make(('A', 1))._replace(name=n)) for n in names]
  ids = {source.split(' id="')[1].split('"')[0] for source in sources}
  assert len(ids) == len(names) and not any(' ' in i for i in ids)


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(st.lists(st.tuples(st.text(), st.text()), max_size=4))
def test_whatever_text_comes_it_reads_back(rows):
  table = make(*rows, notes='<b>')
  source = tables.html(table)
  assert '<b>' not in source
  reader = Reader(source)
  assert len(reader.rows) == len(rows) + 1
  for cells, row in zip(reader.rows[1:], rows):
    assert [tag for tag, *_ in cells] == ['th', 'td']
    for (_, _, found), text in zip(cells, row):
      assert len(found) == len(text)
      assert all(a in (b, '\ufffd') for a, b in zip(found, text))
  for cells, row in zip(read_csv(table)[1:], rows):
    for found, text in zip(cells, row):
      found = found.removeprefix("'" * (not text.startswith("'")))
      assert len(found) == len(text)
      assert all(a in (b, '\ufffd') for a, b in zip(found, text))


@pytest.mark.parametrize('writer', WRITERS)
@pytest.mark.parametrize('row', [('A',), ('A', 1, 2), ()])
def test_rows_must_have_a_cell_a_header(writer, row):
  with pytest.raises(ValueError, match=r"table 'dice': row 1 must have a cell"):
    writer(make(('A', 1), row))


@pytest.mark.parametrize('writer', WRITERS)
def test_a_table_may_be_empty(writer):
  assert 'Dice' in writer(make())


@pytest.mark.parametrize('character', ['\0', '\x1b', '\x85', '\ud800', '\r'])
@pytest.mark.parametrize('writer', WRITERS)
def test_no_control_characters_get_out(writer, character):
  name = f'a{character}b'
  table = tables.Table(name, name, (name, 'n'), [(name, 1)], name)
  assert character not in writer(table)
  writer(table).encode()
  assert tables.escape_html(name) == 'a\ufffdb'
