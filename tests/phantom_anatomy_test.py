"""Tests of phantom_anatomy.py: where the head lies, distances, motion."""

import math

import numpy as np
import pytest

from ppcmi_jax.datasets import phantom_anatomy


@pytest.mark.parametrize('subject', range(8))
def test_angle_of_progression_is_the_one_drawn(subject):
  anatomy = phantom_anatomy.draw_anatomy(seed=3, subject=subject)
  symphysis, head = anatomy.symphysis.shape, anatomy.head.shape
  axis = np.array([math.cos(symphysis.angle), math.sin(symphysis.angle)])
  end = np.array([symphysis.x, symphysis.y]) + symphysis.a * axis
  t = np.linspace(0, 2 * np.pi, 5000)
  c, s = math.cos(head.angle), math.sin(head.angle)
  u, v = head.a * np.cos(t), head.b * np.sin(t)
  x, y = head.x + c * u - s * v - end[0], head.y + s * u + c * v - end[1]
  # Angle from the upper end of the symphysis, anticlockwise on the screen.
  upper = math.atan2(-axis[1], -axis[0])
  angles = np.rad2deg((upper - np.arctan2(y, x)) % (2 * np.pi))
  np.testing.assert_allclose(angles.max(), anatomy.progression_deg, atol=0.05)


def test_distance_is_exact_on_a_circle_and_its_normal_points_outward():
  circle = phantom_anatomy.Ellipse(3.0, -2.0, 5.0, 5.0, 0.7)
  t = np.linspace(0, 2 * np.pi, 9)
  for radius in (4.0, 5.0, 6.5):
    x, y = 3.0 + radius * np.cos(t), -2.0 + radius * np.sin(t)
    distance, nx, ny = phantom_anatomy.distance(x, y, circle)
    np.testing.assert_allclose(distance, radius - 5, atol=1e-4)
    np.testing.assert_allclose(nx, np.cos(t), atol=1e-4)
    np.testing.assert_allclose(ny, np.sin(t), atol=1e-4)


def test_motion_keeps_distances_between_centres_and_sizes():
  anatomy = phantom_anatomy.draw_anatomy(seed=0, subject=1)
  shapes = [anatomy.symphysis.shape, anatomy.head.shape]
  moved = [phantom_anatomy.move(shape, 1.5, -2.0, 0.04) for shape in shapes]
  for before, after in zip(shapes, moved):
    assert (after.a, after.b) == (before.a, before.b)
    assert after.angle == pytest.approx(before.angle + 0.04)
  apart = [math.dist((a.x, a.y), (b.x, b.y)) for a, b in (shapes, moved)]
  assert apart[0] == pytest.approx(apart[1])
