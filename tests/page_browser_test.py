"""Tests of pages in a browser: what they show, sort, print and refuse."""

import re

import pytest
from chromium import CHROMIUM, Browser
from sample_pages import HOSTILE, PNG, ratio, sample

needs_browser = pytest.mark.skipif(not CHROMIUM, reason='no chromium installed')


@pytest.fixture
def png(tmp_path):
  path = tmp_path / 'picture.png'
  path.write_bytes(PNG)
  return path


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
