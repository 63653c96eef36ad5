"""How a page of `page` looks, and the script that sorts its tables."""

from collections.abc import Mapping

# Text reaches 4.5 : 1 on every ground it stands on, lines that mean something
# 3 : 1 (WCAG 2.2 AA).
LIGHT = {
  'ground': '#fcfcfa',
  'text': '#1d2226',
  'muted': '#575e66',
  'link': '#0a4f8f',
  'rule': '#d4d8dc',
  'note': '#eef3f8',
  'note-line': '#47688c',
  'warning': '#fdf3dc',
  'warning-line': '#8a5a00',
}
DARK = {
  'ground': '#16191d',
  'text': '#e3e6e9',
  'muted': '#a8b0b8',
  'link': '#8fc0f2',
  'rule': '#3a4149',
  'note': '#1e2731',
  'note-line': '#7f9fc2',
  'warning': '#2c2513',
  'warning-line': '#d6a545',
}


def _variables(palette: Mapping[str, str]) -> str:
  return ' '.join(f'--{name}: {value};' for name, value in palette.items())


STYLE = (
  f"""
:root {{ color-scheme: light; {_variables(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{
  :root {{ color-scheme: dark; {_variables(DARK)} }}
}}
"""
  + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  background: var(--ground); color: var(--text); margin: 0 auto;
  max-width: 96rem; overflow-wrap: break-word; padding: 2.5rem 1.5rem 4rem;
  font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto,
    "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, sans-serif;
}
h1, h2 { font-weight: 600; line-height: 1.25; text-wrap: balance; }
h1 { font-size: 2rem; margin: 0 0 .4rem; }
h2 { font-size: 1.4rem; margin: 0 0 1rem; }
h1, h2 { max-width: 60rem; }
p, ol, .note, figcaption { max-width: 64ch; }
p { margin: 0 0 1rem; }
.subtitle { color: var(--muted); font-size: 1.15rem; }
a { color: var(--link); text-underline-offset: .15em; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -100rem; }
.skip:focus {
  background: var(--ground); left: 1rem; padding: .5rem; top: .5rem;
}
nav { margin: 2rem 0 0; }
nav h2 { font-size: 1rem; margin-bottom: .25rem; }
nav ol { margin: 0; padding-left: 1.6rem; }
nav li { padding: .1rem 0; }
main > section {
  border-top: 1px solid var(--rule); margin-top: 2.75rem; padding-top: 2rem;
}
.note {
  background: var(--note); border-left: .3rem solid var(--note-line);
  margin: 1.25rem 0 1.5rem; padding: .8rem 1.1rem;
}
.note.warning {
  background: var(--warning); border-left-color: var(--warning-line);
}
.note p { margin: 0 0 .5rem; }
.note p:last-child { margin: 0; }
.note .label { font-weight: 600; margin-bottom: .2rem; }
figure { margin: 1.75rem 0 2.25rem; }
.table figcaption { font-weight: 600; margin-bottom: .6rem; }
.image figcaption, .notes { color: var(--muted); font-size: .9375rem; }
.image figcaption { margin-top: .6rem; }
.notes { margin: .6rem 0 0; }
.image img {
  background: #fff; display: block; height: auto; max-width: 100%;
}
.scroll { max-width: 100%; overflow: auto; width: fit-content; }
details .scroll { max-height: 90vh; }
table {
  border-collapse: separate; border-spacing: 0; font-size: .9375rem;
  font-variant-numeric: tabular-nums; line-height: 1.4;
}
th, td {
  background: var(--ground); border-bottom: 1px solid var(--rule);
  padding: .4rem .75rem; text-align: left; vertical-align: baseline;
  white-space: nowrap;
}
.number { text-align: right; }
thead th, .long {
  max-width: 20rem; overflow-wrap: break-word; white-space: normal;
}
.long { min-width: min(20rem, 45vw); }
thead th {
  border-bottom: 2px solid var(--muted); font-weight: 600; position: sticky;
  top: 0; vertical-align: bottom; z-index: 1;
}
tbody th { font-weight: 500; }
tr > :first-child {
  left: 0; max-width: min(20rem, 45vw); padding-left: .25rem; position: sticky;
}
thead tr > :first-child { z-index: 2; }
th button {
  background: none; border: 0; color: inherit; cursor: pointer; font: inherit;
  margin: 0; max-width: 100%; min-height: 1.6rem; overflow-wrap: inherit;
  padding: 0 1.1em 0 0; position: relative; text-align: inherit;
}
th button:focus-visible { outline-offset: 0; }
th button::after {
  bottom: 0; color: var(--muted); content: "\\2195" / ""; font-weight: 400;
  position: absolute; right: 0; text-align: center; width: 1em;
}
[aria-sort] button::after { color: var(--text); font-weight: 700; }
[aria-sort="ascending"] button::after { content: "\\2191" / ""; }
[aria-sort="descending"] button::after { content: "\\2193" / ""; }
@media (hover: hover) {
  th button:hover { text-decoration: underline; }
  tbody tr:hover > * { background: var(--note); }
}
dl { margin: 1rem 0 1.5rem; max-width: 60rem; }
dl > div {
  border-bottom: 1px solid var(--rule); display: grid; gap: 0 1.5rem;
  grid-template-columns: minmax(8rem, 16rem) 1fr; padding: .35rem 0;
}
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
dt { overflow-wrap: anywhere; }
details { border-bottom: 1px solid var(--rule); margin: 0 0 1rem; }
summary { cursor: pointer; font-weight: 600; padding: .5rem 0; }
details[open] { padding-bottom: .5rem; }
pre {
  background: var(--note); font-size: .875rem; line-height: 1.45;
  margin: 0 0 1rem; overflow: auto; padding: .8rem 1rem;
}
footer { color: var(--muted); font-size: .9375rem; margin-top: 3rem; }
@media (max-width: 40rem) {
  body { font-size: 1rem; padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.6rem; }
  dl > div { grid-template-columns: 1fr; }
}
@media screen and (prefers-color-scheme: dark) {
  .image img { border-radius: .4rem; padding: .75rem; }
}
@media print {
  @page { margin: 15mm; }
  @page wide { margin: 10mm; size: landscape; }
  .wide, h2:has(+ .wide) { page: wide; }
  .wide > * { max-width: none; }
  :root { --ground: #fff; font-size: 10pt; }
  body { font-size: 1rem; max-width: none; padding: 0; }
  .skip, nav { display: none; }
  h2, figcaption, summary { break-after: avoid; }
  .note, .image, thead, tr, dl > div { break-inside: avoid; }
  .image img { max-height: 85vh; }
  .scroll, details .scroll { max-height: none; overflow: visible; }
  .scroll, tr > * { position: static !important; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; }
  th button { display: contents; }
  th button::after { display: none; }
  pre { white-space: pre-wrap; }
  .note, pre { border: 1px solid var(--note-line); }
  .note { border-left-width: .3rem; }
  ::details-content { content-visibility: visible; display: block; }
}
"""
)

# A click sorts up, a second down, a third restores the first order. Numbers
# come before words, and what is undefined ('-') last, whichever way.
SCRIPT = """
'use strict';
const words = new Intl.Collator('en', {numeric: true});
const key = cell => 'value' in cell.dataset
  ? [0, Number(cell.dataset.value)]
  : [cell.textContent === '-' ? 2 : 1, cell.textContent];
for (const table of document.querySelectorAll('.table table')) {
  const body = table.tBodies[0], rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  if (rows.length > 1) heads.forEach((head, column) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const old = head.getAttribute('aria-sort');
      for (const other of heads) other.removeAttribute('aria-sort');
      if (old === 'descending') return body.append(...rows);
      const sign = old ? -1 : 1;
      head.setAttribute('aria-sort', old ? 'descending' : 'ascending');
      const keyed = rows.map(row => [key(row.cells[column]), row]);
      keyed.sort(([[a, x]], [[b, y]]) =>
        a - b || sign * (a ? words.compare(x, y) : x === y ? 0 : x - y));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}
const shut = [];
addEventListener('beforeprint', () => {
  shut.push(...document.querySelectorAll('details:not([open])'));
  for (const details of shut) details.open = true;
});
addEventListener('afterprint', () => {
  while (shut.length) shut.pop().open = false;
});
"""
