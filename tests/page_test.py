import base64
import contextlib
import html.parser
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from ppcmi_jax import tables
from ppcmi_jax.report import page, page_style

HOSTILE = '<script>alert(1)</script>"\'><img src=x onerror=alert(2)>&amp;'
CHROMIUM = next(
  filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chrome'))), None
)
needs_browser = pytest.mark.skipif(not CHROMIUM, reason='no chromium installed')

# A PNG of one white pixel.
PNG = base64.b64decode(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mP4DwABAQEAG7buVgAA'
  'AABJRU5ErkJggg=='
)
VOID = {'meta', 'link', 'img', 'br', 'hr', 'input', 'wbr'}


@pytest.fixture
def png(tmp_path):
  path = tmp_path / 'picture.png'
  path.write_bytes(PNG)
  return path


def scores(name='dice', client='A'):
  nan = float('nan')
  return tables.Table(
    name,
    'Dice of the test split',
    ('client', 'Dice', 'n', 'site', 'HD95 mm'),
    [
      (client, tables.Interval(0.5, 0.4, 0.6), 10, 'west', '9.5'),
      ('B', nan, 9, 'east', '10.25'),
      ('C', tables.Interval(0.25, nan, nan), 100, 'north', '10.3'),
      ('D', 1.0, 2, '-', None),
    ],
    'n: cases.',
  )


def sample(png, client='A'):
  """Returns a page that has everything a page can have."""
  return page.render(
    f'Evaluation of {client}',
    f'Subtitle {client}',
    [
      page.Section(
        f'Results of {client}',
        [
          f'Of {client}.\n\nSecond paragraph.',
          page.note(f'Within subject, {client}.', label='Limits', warning=True),
          scores(client=client),
          page.figure(png, f'Caption {client}', f'Alt {client}'),
        ],
      ),
      page.Section(
        'Configuration',
        [
          page.definitions({'a': {'b': 1}, client: client, 'none': None}),
          page.details(
            f'All of {client}',
            page.verbatim(f'{client}\n  two'),
            scores('cases', client),
          ),
        ],
      ),
    ],
  )


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


def ratio(one, other):
  """Returns the contrast of two colours, (r, g, b) of 0 to 255; WCAG 2.2."""

  def luminance(colour):
    linear = [
      c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
      for c in (v / 255 for v in colour)
    ]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear))

  low, high = sorted((luminance(one), luminance(other)))
  return (high + 0.05) / (low + 0.05)


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


class Browser:
  """A headless Chromium at the other end of two pipes (DevTools protocol)."""

  # The pipes have to be file descriptors 3 and 4 of the browser.
  START = (
    'import fcntl, os, sys; '
    'ends = [fcntl.fcntl(int(a), fcntl.F_DUPFD, 10) for a in sys.argv[1:3]]; '
    'os.dup2(ends[0], 3); os.dup2(ends[1], 4); '
    'os.execv(sys.argv[3], sys.argv[3:])'
  )

  def __init__(self, folder):
    theirs_in, self.write = os.pipe()
    self.read, theirs_out = os.pipe()
    self.process = subprocess.Popen(
      [
        *(sys.executable, '-S', '-c', self.START),
        *(str(theirs_in), str(theirs_out), CHROMIUM),
        *('--headless=new', '--no-sandbox', '--disable-gpu'),
        *('--disable-dev-shm-usage', '--no-first-run', '--hide-scrollbars'),
        *('--disable-background-networking', '--disable-component-update'),
        *('--disable-extensions', '--disable-sync', '--no-pings'),
        *('--remote-debugging-pipe', f'--user-data-dir={folder}'),
        'about:blank',
      ],
      pass_fds=(theirs_in, theirs_out),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    self.number, self.buffer, self.events, self.session = 0, b'', [], None
    targets = self.send('Target.getTargets')['targetInfos']
    [target] = [t['targetId'] for t in targets if t['type'] == 'page'][:1]
    self.session = self.send(
      'Target.attachToTarget', targetId=target, flatten=True
    )['sessionId']
    for domain in ('Page', 'Network', 'Runtime', 'Log'):
      self.send(f'{domain}.enable')

  def receive(self):
    while b'\0' not in self.buffer:
      assert select.select([self.read], [], [], 60)[0], 'the browser hangs'
      data = os.read(self.read, 1 << 20)
      assert data, 'the browser ended'
      self.buffer += data
    message, _, self.buffer = self.buffer.partition(b'\0')
    return json.loads(message)

  def send(self, method, **params):
    self.number += 1
    call = {'id': self.number, 'method': method, 'params': params}
    if self.session:
      call['sessionId'] = self.session
    os.write(self.write, json.dumps(call).encode() + b'\0')
    while (message := self.receive()).get('id') != self.number:
      self.events.append(message)
    assert 'error' not in message, (method, message)
    return message['result']

  def open(self, path, *, scheme='light', width=1280, height=900):
    self.events.clear()
    self.send(
      'Emulation.setEmulatedMedia',
      features=[{'name': 'prefers-color-scheme', 'value': scheme}],
    )
    self.send(
      'Emulation.setDeviceMetricsOverride',
      **{'width': width, 'height': height, 'deviceScaleFactor': 1},
      mobile=False,
    )
    self.send('Page.navigate', url=path.as_uri())
    while not self.named('Page.loadEventFired'):
      self.events.append(self.receive())

  def named(self, *methods):
    return [
      event['params'] for event in self.events if event.get('method') in methods
    ]

  def ask(self, expression):
    result = self.send(
      'Runtime.evaluate',
      **{'expression': expression, 'returnByValue': True, 'awaitPromise': True},
    )
    assert 'exceptionDetails' not in result, result
    return result['result'].get('value')

  def press(self, key, code, text=''):
    for kind in ('keyDown', 'keyUp'):
      self.send(
        'Input.dispatchKeyEvent',
        **{'type': kind, 'key': key, 'windowsVirtualKeyCode': code},
        **({'text': text} if text and kind == 'keyDown' else {}),
      )

  def close(self):
    with contextlib.suppress(AssertionError, OSError):
      self.send('Browser.close')
    os.close(self.write)
    os.close(self.read)
    try:
      self.process.wait(10)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
  browser = Browser(tmp_path_factory.mktemp('browser'))
  yield browser
  browser.close()


@pytest.fixture
def path(png, tmp_path):
  path = tmp_path / 'page.html'
  path.write_text(sample(png, HOSTILE), encoding='utf-8')
  return path


ROWS = (
  "[...document.querySelectorAll('#table-dice tbody th')]"
  ".map(cell => cell.textContent[0]).join('')"
)
SORTS = (
  "[...document.querySelectorAll('#table-dice thead th')]"
  ".map(cell => cell.getAttribute('aria-sort'))"
)


@needs_browser
def test_browser_shows_it_without_errors_or_requests(browser, path):
  browser.open(path)
  assert browser.ask('document.images[0].naturalWidth') == 1
  assert browser.ask('getComputedStyle(document.body).backgroundColor') != (
    'rgba(0, 0, 0, 0)'
  )
  assert browser.ask("document.querySelectorAll('thead button').length") == 10
  for event in browser.named('Network.requestWillBeSent'):
    assert event['request']['url'].split(':')[0] in ('file', 'data')
  assert browser.named('Network.requestWillBeSent')
  assert not browser.named(
    *('Runtime.consoleAPICalled', 'Runtime.exceptionThrown'),
    *('Log.entryAdded', 'Page.javascriptDialogOpening'),
  )


@needs_browser
@pytest.mark.parametrize(
  'column, up, down',
  [
    (0, '<BCD', 'DCB<'),
    (1, 'C<DB', 'D<CB'),  # undefined last, both ways
    (2, 'DB<C', 'C<BD'),
    (3, 'BC<D', '<CBD'),
    (4, '<BCD', 'CB<D'),  # numbers that came as text are numbers
  ],
)
def test_tables_sort_by_click(browser, path, column, up, down):
  browser.open(path)
  button = f"document.querySelectorAll('#table-dice button')[{column}]"
  unsorted = [None] * 5
  assert browser.ask(SORTS) == unsorted
  for order, direction in (
    (up, 'ascending'),
    (down, 'descending'),
    ('<BCD', None),
    (up, 'ascending'),
  ):
    browser.ask(f'{button}.click()')
    assert browser.ask(ROWS) == order
    expected = unsorted.copy()
    expected[column] = direction
    assert browser.ask(SORTS) == expected


@needs_browser
def test_tables_sort_by_keyboard(browser, path):
  browser.open(path)
  seen = []
  for _ in range(7):  # skip link, two contents, the scrolling box, headers
    browser.press('Tab', 9)
    seen.append(browser.ask('document.activeElement.tagName'))
  assert seen == ['A', 'A', 'A', 'DIV', 'BUTTON', 'BUTTON', 'BUTTON']
  browser.press('Enter', 13, '\r')
  assert browser.ask(ROWS) == 'DB<C'
  browser.press(' ', 32, ' ')
  assert browser.ask(ROWS) == 'C<BD'
  assert browser.ask('document.activeElement.textContent') == 'n'
  assert browser.ask('getComputedStyle(document.activeElement).outlineStyle')


# Of every element that holds text itself: its colour and the ground below it.
COLOURS = """
  document.querySelectorAll('details').forEach(d => d.open = true);
  [...document.body.querySelectorAll('*')].filter(e => e.tagName !== 'SCRIPT' &&
    [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())
  ).map(e => {
    const style = getComputedStyle(e);
    let below = e, ground;
    do {
      ground = getComputedStyle(below).backgroundColor;
      below = below.parentElement;
    } while (below && ground === 'rgba(0, 0, 0, 0)');
    return [e.tagName, style.color, ground];
  })
"""


@needs_browser
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_has_contrast_as_shown(browser, path, scheme):
  browser.open(path, scheme=scheme)
  shown = browser.ask(COLOURS)
  assert {'P', 'TD', 'TH', 'A', 'DT', 'SUMMARY', 'BUTTON'} <= {
    tag for tag, *_ in shown
  }
  numbers = lambda colour: [int(v) for v in re.findall(r'\d+', colour)[:3]]
  for tag, colour, ground in shown:
    assert ratio(numbers(colour), numbers(ground)) >= 4.5, (tag, colour, ground)
  dark = ratio(numbers(shown[0][2]), (0, 0, 0)) < 2
  assert dark == (scheme == 'dark')
  card = browser.ask('getComputedStyle(document.images[0]).backgroundColor')
  assert card == 'rgb(255, 255, 255)'


@needs_browser
@pytest.mark.parametrize('width', [320, 400, 1280])
def test_only_tables_scroll_sideways(browser, path, width):
  browser.open(path, width=width)
  page_width, table_width, box_width = browser.ask(
    '[document.documentElement.scrollWidth, '
    "...['scrollWidth', 'clientWidth'].map(name => "
    "document.querySelector('.scroll')[name])]"
  )
  assert page_width <= width
  assert box_width <= table_width and (table_width > width) == (width < 500)
  first = "document.querySelector('tbody tr > *').getBoundingClientRect().x"
  before = browser.ask(first)
  browser.ask("document.querySelector('.scroll').scrollLeft = 100")
  assert browser.ask(first) == before


@needs_browser
def test_without_scripts_all_is_shown(browser, path):
  browser.send('Emulation.setScriptExecutionDisabled', value=True)
  browser.open(path)
  browser.send('Emulation.setScriptExecutionDisabled', value=False)
  assert browser.ask("document.querySelector('thead').innerText").split() == [
    *('client', 'Dice', 'n', 'site', 'HD95', 'mm')
  ]
  assert browser.ask("document.querySelectorAll('button').length") == 0


@needs_browser
def test_print_opens_what_is_folded(browser, path):
  browser.open(path)
  closed = "document.querySelectorAll('details:not([open])').length"
  assert browser.ask(closed) == 1
  browser.ask("dispatchEvent(new Event('beforeprint'))")
  assert browser.ask(closed) == 0
  browser.ask("dispatchEvent(new Event('afterprint'))")
  assert browser.ask(closed) == 1
  assert len(browser.send('Page.printToPDF')['data']) > 1000


@needs_browser
def test_browser_refuses_what_was_smuggled_in(browser, path):
  """Had the escaping a hole, the policy would still close it."""
  source = path.read_text(encoding='utf-8')
  path.write_text(
    source.replace(
      '<main',
      '<script>window.smuggled = 1</script>'
      '<img src="http://127.0.0.1:9/x.png" onerror="window.smuggled = 2">'
      '<p style="color: red" id="red">x</p><main',
      1,
    ),
    encoding='utf-8',
  )
  browser.open(path)
  assert browser.ask('window.smuggled') is None
  assert browser.ask("fetch('http://127.0.0.1:9/').catch(() => 'refused')") == (
    'refused'
  )
  assert (
    browser.ask("getComputedStyle(window['red']).color") != 'rgb(255, 0, 0)'
  )
  refused = [e['entry']['text'] for e in browser.named('Log.entryAdded')]
  assert sum('Content Security Policy' in text for text in refused) >= 4
  for event in browser.named('Network.responseReceived'):
    assert not event['response']['url'].startswith('http')
