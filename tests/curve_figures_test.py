"""Tests of figures/curves.py: a panel a task, its scale, gaps, resumed runs."""

import math

import pytest
import sheet_layout

from ppcmi_jax.figures import curves as curve_figures


def make_rows(task='1/7 image autoencoder, client 1', losses=(1.0, 0.1, 0.05)):
  return [
    {'task': task, 'step': 100 * i, 'loss': loss, 'valid_loss': loss}
    for i, loss in enumerate(losses, start=1)
  ]


def draw(tmp_path, rows):
  path = tmp_path / 'figure.png'
  return sheet_layout.draw(curve_figures.draw_curves, path, rows)


def data_of(panel, line=0):
  x, y = panel.lines[line].get_data()
  return list(x), [None if math.isnan(v) else float(v) for v in y]


def test_one_panel_a_task_in_order(tmp_path):
  names = [f'{i}/7 mask autoencoder, client {i}' for i in range(1, 7)]
  names.append('7/7 mapping network, a server of a very long name indeed')
  rows = [row for name in names for row in make_rows(name)]
  drawn = draw(tmp_path, rows)
  assert len(drawn.panels) == 7
  heads = [word for word in drawn.words() if word[1:3] == '/7']
  assert heads == [f'{name.split(",")[0]},' for name in names]
  train, valid, _ = drawn.panels[0].lines
  assert train.get_color() != valid.get_color()
  assert train.get_linestyle() != valid.get_linestyle()


def test_tasks_that_were_logged_in_turns_are_in_order(tmp_path):
  """Side by side, the second may be validated first; 10 comes after 2."""
  names = [f'{i}/11 mask autoencoder, client {i}' for i in (2, 1, 10, 3)]
  drawn = draw(tmp_path, [row for name in names for row in make_rows(name)])
  heads = [word.split('/')[0] for word in drawn.words() if '/11' in word]
  assert heads == ['1', '2', '3', '10']


@pytest.mark.parametrize(
  'losses, scale',
  [
    ((1.0, 0.1), 'log'),
    ((1.0, 0.9), 'linear'),
    ((1.0, -1.0), 'linear'),
    ((1e-6, 1e6), 'log'),
    ((0.5,), 'linear'),
    ((0.0, 0.0), 'linear'),
  ],
)
def test_scale_is_logarithmic_where_losses_span_factors(
  tmp_path, losses, scale
):
  (panel,) = draw(tmp_path, make_rows(losses=losses)).panels
  assert panel.get_yscale() == scale
  low, high = panel.get_ylim()
  assert low <= min(losses) and max(losses) <= high


@pytest.mark.parametrize('high', [0.04, 0.1, 1.0, 77.0, 1e9])
def test_log_ticks_are_few_inside_and_apart(high):
  ticks = curve_figures.log_ticks(0.01, high)
  assert 1 <= len(ticks) <= curve_figures.MAX_TICKS
  assert ticks == sorted(set(ticks))
  assert ticks[0] >= 0.01 and ticks[-1] <= high


def test_losses_that_are_not_finite_leave_gaps(tmp_path):
  losses = (1.0, None, math.nan, math.inf, 0.1)
  rows = make_rows(losses=losses)
  del rows[0]['valid_loss']
  (panel,) = draw(tmp_path, rows).panels
  assert data_of(panel)[1] == [1.0, None, None, None, 0.1]
  assert data_of(panel, 1)[1] == [None, None, None, None, 0.1]


def test_a_task_without_any_finite_loss_says_so(tmp_path):
  drawn = draw(tmp_path, make_rows(losses=(None, math.nan)))
  assert 'no finite loss' in drawn.words()


def test_the_later_line_of_a_step_counts(tmp_path):
  rows = make_rows(losses=(3.0, 2.0, 1.0))
  rows += [{**rows[1], 'loss': 2.5}]
  (panel,) = draw(tmp_path, rows).panels
  assert data_of(panel) == ([100, 200, 300], [3.0, 2.5, 1.0])


def test_the_best_validation_is_marked(tmp_path):
  rows = make_rows(losses=(3.0, 1.0, 2.0))
  (panel,) = draw(tmp_path, rows).panels
  assert data_of(panel, 2) == ([200], [1.0])


@pytest.mark.parametrize('last', [1, 7, 900, 9_900, 123_456, 3_000_000])
def test_trainings_of_any_length_fit(tmp_path, last):
  rows = [
    {'task': task, 'step': step, 'loss': 1.0, 'valid_loss': 2.0}
    for task in 'ab'
    for step in {1, last}
  ]
  for panel in draw(tmp_path, rows).panels:
    assert len([t for t in panel.get_xticks() if 0 <= t <= 1.06 * last]) > 1


def test_without_rows_there_is_no_file(tmp_path):
  path = tmp_path / 'figure.png'
  assert curve_figures.draw_curves(path, []) is False
  assert not path.exists()
