"""One HTML page that holds all it shows: text, tables, figures.

It is read without a network, by people who may not want one near it: its
Content-Security-Policy lets the browser load nothing, and apply and run nothing
but the style sheet and the script of `page_style`, known by their digests; all
text is escaped. Without the script only the sorting of tables is missing.

>>> html = render(
...   'Evaluation', 'Hospitals A to C',
...   [Section('Limits', ['Not for clinical use.', note('Four cases only.')])],
... )
>>> '<p>Not for clinical use.</p>' in html, 'http' in html.split('<body>')[1]
(True, False)
"""

import base64
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ppcmi_jax import tables
from ppcmi_jax.report import page_style

CSS_DPI = 96
ZOOM = 1.6  # of pictures, over their size in print

_PNG = b'\x89PNG\r\n\x1a\n'


class Html(str):
  """What functions of this module made; any other text is escaped."""

  __slots__ = ()


Part = str | tables.Table


class Section(NamedTuple):
  """A part of the page with a place in its contents.

  Attributes:
    heading: text.
    parts: in order: text (paragraphs, with an empty line between), a
      `tables.Table`, or what `note`, `figure`, ... of this module return.
  """

  heading: str
  parts: Sequence[Part]


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
  """Returns a whole page, to be written as UTF-8.

  Args:
    title: of the page, its one h1.
    subtitle: a sentence below it, or ''.
    sections: at least one.

  Raises:
    ValueError: no sections; two tables of one name.
  """
  sections = list(sections)
  if not sections:
    raise ValueError('sections must hold at least one section, found none')
  contents, body = [], []
  for i, (heading, parts) in enumerate(sections, start=1):
    heading = tables.escape_html(heading)
    contents.append(f'<li><a href="#section-{i}">{heading}</a></li>')
    body.append(
      f'<section id="section-{i}">\n<h2>{heading}</h2>\n{_join(parts)}'
      '\n</section>'
    )
  # A quote in text is escaped, so that this finds attributes only.
  names = re.findall(r'<figure class="table[^"]*" id="([^"]*)"', ''.join(body))
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(
      f'tables of a page must have different names, found {twice} more than '
      'once; rename one'
    )
  title = tables.escape_html(title)
  subtitle = subtitle and (
    f'<p class="subtitle">{tables.escape_html(subtitle)}</p>'
  )
  style, script = page_style.STYLE, page_style.SCRIPT
  newline = '\n'
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; \
base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip the contents</a>
<header>
<h1>{title}</h1>
{subtitle}
</header>
<nav aria-labelledby="contents">
<h2 id="contents">Contents</h2>
<ol>
{newline.join(contents)}
</ol>
</nav>
<main id="main" tabindex="-1">
{newline.join(body)}
</main>
<footer><p>This page holds all it shows: opening it loads nothing from \
elsewhere and sends nothing.</p></footer>
<script>{script}</script>
</body>
</html>
"""


def note(text: str, *, label: str = 'Note', warning: bool = False) -> Html:
  """Returns a call-out: what a reader must not miss.

  Args:
    text: paragraphs.
    label: its first words; 'Warning' says more than a colour.
    warning: whether it stands out more.
  """
  kind = 'note warning' if warning else 'note'
  return Html(
    f'<div class="{kind}" role="note"><p class="label">'
    f'{tables.escape_html(label)}</p>{_paragraphs(text)}</div>'
  )


def figure(path: str | os.PathLike, caption: str, alt: str) -> Html:
  """Returns a PNG file as part of the page.

  Args:
    path: of the file.
    caption: text below it.
    alt: what it shows, for those who cannot see it.

  Raises:
    ValueError: no alt; not a PNG file.
    OSError: the file cannot be read.
  """
  if not alt.strip():
    raise ValueError(f'alt of {path} must say what it shows, found nothing')
  data = pathlib.Path(path).read_bytes()
  if data[:8] != _PNG or data[12:16] != b'IHDR':
    raise ValueError(f'{path}: expected a PNG file, found other content')
  width, height = (round(_shrink(data) * n) for n in _pixels(data))
  caption = caption and (
    f'<figcaption>{tables.escape_html(caption)}</figcaption>'
  )
  return Html(
    f'<figure class="image"><img width="{width}" height="{height}" '
    f'alt="{tables.escape_html(alt)}" src="data:image/png;base64,'
    f'{base64.b64encode(data).decode()}">{caption}</figure>'
  )


def _pixels(data: bytes) -> tuple[int, int]:
  """Returns the width and the height of a PNG."""
  return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def _shrink(data: bytes) -> float:
  """Returns by how much to shrink a PNG to near the size it has in print."""
  place = data.find(b'pHYs', 0, 1024)
  per_metre = int.from_bytes(data[place + 4 : place + 8])
  if place < 0 or not per_metre:
    return 1.0
  return min(1.0, ZOOM * CSS_DPI / (per_metre * 0.0254))


def definitions(mapping: Mapping[str, Any]) -> Html:
  """Returns names and their values, such as a configuration.

  Mappings inside are flattened: {'a': {'b': 1}} shows as a.b.
  """
  rows = ''.join(
    f'<div><dt>{tables.escape_html(name)}</dt>'
    f'<dd>{tables.escape_html(value)}</dd></div>\n'
    for name, value in _flatten(mapping)
  )
  return Html(f'<dl>\n{rows}</dl>')


def verbatim(text: str) -> Html:
  """Returns text as it is, lines and spaces kept: a log, a file."""
  return Html(f'<pre tabindex="0">\n{tables.escape_html(text)}</pre>')


def details(summary: str, *parts: Part) -> Html:
  """Returns parts that a reader opens by their summary; open in print."""
  return Html(
    f'<details><summary>{tables.escape_html(summary)}</summary>\n'
    f'{_join(parts)}\n</details>'
  )


def _join(parts: Sequence[Part]) -> str:
  if isinstance(parts, Part):
    parts = [parts]
  return '\n'.join(
    tables.html(part)
    if isinstance(part, tables.Table)
    else part
    if isinstance(part, Html)
    else _paragraphs(part)
    for part in parts
  )


def _paragraphs(text: str) -> str:
  return '\n'.join(
    f'<p>{tables.escape_html(paragraph.strip())}</p>'
    for paragraph in re.split(r'\n\s*\n', text)
    if paragraph.strip()
  )


def _flatten(mapping: Mapping[str, Any], prefix: str = ''):
  for name, value in mapping.items():
    if isinstance(value, Mapping) and value:
      yield from _flatten(value, f'{prefix}{name}.')
    else:
      if isinstance(value, (list, tuple)):
        value = ', '.join(map(str, value))
      yield f'{prefix}{name}', '-' if value in ('', None) else str(value)


def _digest(source: str) -> str:
  digest = hashlib.sha256(source.encode()).digest()
  return f'sha256-{base64.b64encode(digest).decode()}'
