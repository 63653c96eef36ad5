import base64
import html.parser
import itertools
import re

import pytest
from PIL import Image
from sample_pages import HOSTILE, PNG, ratio, sample, scores

from ppcmi_jax.report import page, page_style

VOID = {'meta', 'link', 'img', 'br', 'hr', 'input', 'wbr'}


@pytest.fixture
def png(tmp_path):
  path = tmp_path / 'picture.png'
  path.write_bytes(PNG)
  return path


class Reader(html.parser.HTMLParser):
  """Reads a page, and fails where a tag is not closed where it has to be."""

  def __init__(self, source):
    super().__init__()
    self.open, self.elements, self.text = [], [], []
    self.feed(source)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attributes):
    names = [name for name, _ in attributes]
    assert len(names) == len(set(names)), (tag, names)
    self.elements.append((tag, dict(attributes)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ('style', 'script'):
      self.text.append(data)

  def all(self, tag):
    return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize(
  'client', ['A', HOSTILE, '', 'x' * 300, '\0\x1b\ud800']
)
def test_page_is_well_formed(png, client):
  source = sample(png, client)
  source.encode()
  reader = Reader(source)
  ids = [a['id'] for _, a in reader.elements if 'id' in a]
  assert len(ids) == len(set(ids)) and not any(re.search(r'\s', i) for i in ids)
  for attributes in reader.all('a'):
    assert attributes['href'].removeprefix('#') in ids
  for _, attributes in reader.elements:
    assert attributes.get('aria-labelledby', ids[0]) in ids
  assert all(attributes['alt'] for attributes in reader.all('img'))
  assert reader.elements[0] == ('html', {'lang': 'en'})
  tags = [tag for tag, _ in reader.elements]
  for tag in ('h1', 'title', 'main', 'nav', 'header', 'footer', 'style'):
    assert tags.count(tag) == 1
  levels = [int(tag[1]) for tag in tags if re.fullmatch('h[1-6]', tag)]
  assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
  assert source.startswith('<!DOCTYPE html>\n')


def test_hostile_names_are_text(png):
  plain, hostile = (
    Reader(sample(png, name)) for name in ('x' * len(HOSTILE), HOSTILE)
  )
  shape = lambda reader: [
    (tag, sorted(attributes)) for tag, attributes in reader.elements
  ]
  assert shape(hostile) == shape(plain)
  assert f'Of {HOSTILE}.' in hostile.text and HOSTILE in hostile.text
  for part in (lambda: page.note(HOSTILE, label=HOSTILE), lambda: HOSTILE):
    source = page.render(HOSTILE, HOSTILE, [page.Section(HOSTILE, [part()])])
    assert '<script>alert' not in source and '<img' not in source


def test_joined_html_is_text_and_never_the_other_way_round():
  """Who pastes markup together sees it on the page, escaped."""
  mixed = page.note('a') + HOSTILE
  source = page.render('T', '', [page.Section('S', [mixed])])
  assert '&lt;div class=&quot;note' in source and '<script>alert' not in source


def test_page_may_load_nothing(png):
  reader = Reader(sample(png))
  [policy] = [
    a['content']
    for a in reader.all('meta')
    if a.get('http-equiv') == 'Content-Security-Policy'
  ]
  rules = dict(rule.split(maxsplit=1) for rule in policy.split('; '))
  assert rules['default-src'] == rules['base-uri'] == "'none'"
  assert rules['form-action'] == "'none'" and rules['img-src'] == 'data:'
  for name in ('style-src', 'script-src'):
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]{44}'", rules[name])
  assert set(rules) == {
    *('default-src', 'img-src', 'style-src', 'script-src'),
    *('base-uri', 'form-action'),
  }
  for tag, attributes in reader.elements:
    assert not {'style', 'srcset', 'action'} & set(attributes)
    assert not any(name.startswith('on') for name in attributes)
    if tag != 'a':
      for name in ('src', 'href'):
        assert attributes.get(name, 'data:').startswith('data:')
  for source in (page_style.STYLE, page_style.SCRIPT):
    assert '://' not in source and 'url(' not in source
    assert '@import' not in source and '</' not in source


def test_figure_is_the_file(png):
  [image] = Reader(page.figure(png, 'Caption', 'Alt')).all('img')
  head, data = image['src'].split(',')
  assert head == 'data:image/png;base64' and base64.b64decode(data) == PNG
  assert image['width'] == image['height'] == '1'


@pytest.mark.parametrize('dpi, expected', [(300, 512), (96, 1000), (0, 1000)])
def test_pictures_are_shown_near_their_size_in_print(dpi, expected, tmp_path):
  path = tmp_path / 'picture.png'
  options = {'dpi': (dpi, dpi)} if dpi else {}
  Image.new('RGB', (1000, 500)).save(path, **options)
  [image] = Reader(page.figure(path, 'Caption', 'Alt')).all('img')
  assert int(image['width']) == pytest.approx(expected, abs=1)
  assert int(image['height']) == pytest.approx(expected / 2, abs=1)


def test_figure_refuses_what_is_no_picture(png, tmp_path):
  with pytest.raises(ValueError, match='must say what it shows'):
    page.figure(png, 'Caption', ' ')
  svg = tmp_path / 'picture.svg'
  svg.write_text('<svg><script/></svg>')
  with pytest.raises(ValueError, match='expected a PNG file'):
    page.figure(svg, 'Caption', 'Alt')


def test_definitions_are_flat():
  reader = Reader(page.definitions({'a': {'b': 1, 'c': {}}, 'd': [1, 2]}))
  words = [text for text in reader.text if text.strip()]
  assert words == ['a.b', '1', 'a.c', '{}', 'd', '1, 2']


def test_one_part_needs_no_list():
  for part, expected in (('text', '<p>text</p>'), (scores(), '<table')):
    assert expected in page.render('T', '', [('S', part)])


def test_refuses_no_sections_and_tables_of_one_name():
  with pytest.raises(ValueError, match='at least one section'):
    page.render('T', '', [])
  with pytest.raises(ValueError, match=r"\['table-dice'\] more than once"):
    page.render('T', '', [page.Section('S', [scores(), scores()])])


def test_contrast_is_that_of_wcag():
  assert ratio((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
  assert ratio((0x76,) * 3, (255,) * 3) == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize('palette', [page_style.LIGHT, page_style.DARK])
def test_colours_can_be_told_apart(palette):
  colour = {name: bytes.fromhex(code[1:]) for name, code in palette.items()}
  for ground in ('ground', 'note', 'warning'):
    for text in ('text', 'muted', 'link'):
      assert ratio(colour[text], colour[ground]) >= 4.5, (text, ground)
    for line in ('note-line', 'warning-line', 'link'):
      assert ratio(colour[line], colour[ground]) >= 3, (line, ground)
  assert page_style.LIGHT.keys() == page_style.DARK.keys()
