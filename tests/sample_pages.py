"""Pages that have everything a page can have, and the contrast of colours."""

import base64

from ppcmi_jax import tables
from ppcmi_jax.report import page

HOSTILE = '<script>alert(1)</script>"\'><img src=x onerror=alert(2)>&amp;'

# A PNG of one white pixel.
PNG = base64.b64decode(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mP4DwABAQEAG7buVgAA'
  'AABJRU5ErkJggg=='
)


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
