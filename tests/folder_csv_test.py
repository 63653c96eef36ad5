"""Tests of folder_csv.py: every mistake in a list is named by its line."""

import pytest

from ppcmi_jax.datasets import folder_csv


def read(folder, text):
  """Writes a list, and empty files of the names a to e, and reads it."""
  for name in 'abcde':
    (folder / f'{name}.png').touch()
    (folder / f'{name}_m.png').touch()
  (folder / 'list.csv').write_bytes(text.encode())
  return folder_csv.read(folder, 'list.csv')


def test_columns_in_any_order_with_blanks_and_a_mark(tmp_path):
  rows = read(
    tmp_path,
    '\ufeffmask, site ,image\r\na_m.png, north,a.png\r\n\r\n'
    'b_m.png,x,"b.png"\r\n',
  )
  assert rows == [
    folder_csv.Row('a', tmp_path / 'a.png', tmp_path / 'a_m.png', 'a', 'north'),
    folder_csv.Row('b', tmp_path / 'b.png', tmp_path / 'b_m.png', 'b', 'x'),
  ]


def test_files_of_one_name_are_of_two_subjects(tmp_path):
  text = 'image,mask\n'
  for place in 'xy':
    (tmp_path / place).mkdir()
    (tmp_path / place / '1.png').touch()
    text += f'{place}/1.png,a_m.png\n'
  rows = read(tmp_path, text)
  assert [row.subject for row in rows] == ['x/1', 'y/1']
  assert {row.site for row in rows} == {'1'}


@pytest.mark.parametrize(
  'line, reason',
  [
    ('z.png,a_m.png,p,x', r'image: there is no file z\.png'),
    ('c.png,z_m.png,p,x', r'mask: there is no file z_m\.png'),
    ('../c.png,a_m.png,p,x', r'image: .*inside the folder, found \.\./c\.png'),
    ('c.png,/etc/hosts,p,x', 'mask: .*inside the folder, found /etc/hosts'),
    ('a.png,a_m.png,p,x', 'image: a stands in line 2 already'),
    ('c.png,c_m.png,q,y', "'q' is at the site 'y' here and at 'x' in line 3"),
    ('c.png,c_m.png,,x', 'subject: .*empty'),
    ('c.png,c_m.png,p', 'expected 4 cells'),
    ('c.png,c_m.png,p,x,more', 'expected 4 cells'),
  ],
)
def test_bad_lines_are_named(tmp_path, line, reason):
  bad, *good = read(
    tmp_path,
    'image,mask,subject,site\na.png,a_m.png,p,x\nb.png,b_m.png,q,x\n'
    f'{line}\nd.png,d_m.png,q,x\n',
  )
  assert bad.name == 'list.csv, line 4'
  with pytest.raises(ValueError, match=reason):
    bad.read()
  assert [row.case for row in good] == ['a', 'b', 'd']


@pytest.mark.parametrize(
  'text, reason',
  [
    ('', 'line 1: .*found none'),
    ('image,subject\n', 'line 1: .*found image, subject'),
    ('image,mask,centre\n', 'line 1: .*centre'),
    ('image;mask\n', 'separated by commas; found image;mask'),
    ('image,mask,mask\n', 'line 1: '),
    ('image,mask\n"a.png,a_m.png\n', 'unexpected end'),
  ],
)
def test_bad_lists_are_named(tmp_path, text, reason):
  with pytest.raises(ValueError, match=rf'list\.csv: .*{reason}'):
    read(tmp_path, text)


def test_missing_and_binary_lists_are_named(tmp_path):
  with pytest.raises(ValueError, match=r'list\.csv: csv: there is no file'):
    folder_csv.read(tmp_path, 'list.csv')
  with pytest.raises(ValueError, match='csv: expected a path inside'):
    folder_csv.read(tmp_path, '../list.csv')
  (tmp_path / 'list.csv').write_bytes(b'image,mask\n\xff\xfe')
  with pytest.raises(ValueError, match=r"list\.csv: 'utf-8"):
    folder_csv.read(tmp_path, 'list.csv')
