"""Tests of figures/roc.py: which curves are drawn, and where."""

import numpy as np
import sheet_layout

from ppcmi_jax.figures import roc

FPRS = [0.001, 0.01, 0.1, 1.0]


def test_a_panel_a_loss_and_experiment(tmp_path):
  curve = {'roc': [0.0, 0.3, 0.6, 1.0]}
  by_attack = {'threshold': curve, 'lira_online': curve, 'rmia': curve}
  names = ('mapping', 'overfit', 'shuffled')
  drawn = sheet_layout.draw(
    roc.draw_roc,
    tmp_path / 'roc.png',
    {name: {'all': by_attack, 'mask': by_attack} for name in names},
    fprs=FPRS,
    losses={'all': 'all scales', 'mask': 'decoded mask'},
    title='A test',
  )
  assert len(drawn.panels) == 6
  assert {'lira online', 'chance', 'TPR', 'FPR', '0.001'} <= set(drawn.words())
  chance, *curves = drawn.panels[0].lines
  assert len(curves) == 3
  assert len({line.get_color() for line in drawn.panels[0].lines}) == 4
  np.testing.assert_array_equal(curves[0].get_xdata(), FPRS)
  # No rate is no place on a logarithmic axis.
  np.testing.assert_allclose(curves[0].get_ydata(), [0.001, 0.3, 0.6, 1])
  np.testing.assert_array_equal(chance.get_xdata(), chance.get_ydata())


def test_nothing_to_draw(tmp_path):
  path = tmp_path / 'roc.png'
  assert not roc.draw_roc(path, {}, fprs=FPRS, losses={'all': 'all'})
  assert not path.exists()
