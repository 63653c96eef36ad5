"""A phantom's anatomy: a pubic symphysis, a fetal head, and all around them.

Every structure is an ellipse with an echo; a subject is drawn from (seed,
subject) alone, so asking for more subjects never changes those already drawn.
Part of the frozen rendering (`phantom_rendering`). Lengths are in mm, x to the
right and y down from the middle of the probe's face.

>>> anatomy = draw_anatomy(seed=0, subject=3)
>>> anatomy.head.shape.a > anatomy.symphysis.shape.a
True
"""

import math
from typing import NamedTuple

import numpy as np


class Ellipse(NamedTuple):
  """Places an ellipse: centre and semi-axes in mm, angle in radians."""

  x: float
  y: float
  a: float
  b: float
  angle: float


class Structure(NamedTuple):
  """Gives an ellipse its echo: levels in dB relative to plain tissue."""

  shape: Ellipse
  inside_db: float
  edge_db: float
  edge_mm: float
  specular: float  # 0: the edge echoes alike all round; 1: facing it only.
  loss_db_per_mm: float
  edge_loss_db: float  # Round trip, for a beam that crosses head on.


class Anatomy(NamedTuple):
  """Holds one subject; `progression_deg` is its angle of progression."""

  symphysis: Structure
  head: Structure
  midline: Structure
  others: tuple[Structure, ...]
  waves: np.ndarray  # [n, 4]: wave vector in rad/mm, phase, amplitude in dB.
  progression_deg: float


def draw_anatomy(*, seed: int, subject: int) -> Anatomy:
  """Draws a subject's anatomy in the frame of an unmoved probe.

  The head is set so that the tangent to it from the symphysis' lower end
  makes exactly the drawn angle of progression with the symphysis' long axis.
  """
  rng = np.random.default_rng((seed, subject, 0))

  def around(centre, spread):
    # Triangular, from two uniforms: bounded, so no draw leaves the view.
    return centre + spread * (rng.random() + rng.random() - 1.0)

  def ellipse(*pairs):
    return Ellipse(*[around(*pair) for pair in pairs])

  shape = ellipse((-15, 28), (38, 19), (20, 4), (8.5, 2), (0.14, 0.84))
  symphysis = Structure(
    shape, around(-3.5, 3), around(9, 2.5), around(1, 0.2), 0.5,
    around(0.3, 0.12), 0.8,
  )  # fmt: skip
  progression_deg = around(141, 34)
  head_shape = _place_head(
    shape, np.deg2rad(progression_deg), around(32, 20),
    ellipse((0, 0), (0, 0), (46, 9), (36.5, 7), (0.87, 0.87)),
  )  # fmt: skip
  head = Structure(
    head_shape, around(-8, 2.5), around(16, 3), around(1.3, 0.3), 0.85,
    around(0.05, 0.03), around(4, 1.5),
  )  # fmt: skip
  line = head_shape._replace(
    a=0.75 * head_shape.a, b=0.7, angle=head_shape.angle + around(0, 0.3)
  )
  midline = Structure(line, around(1, 3), 0, 1, 0, 0, 0)
  others = []
  if rng.random() < 0.6:  # A bladder.
    shape = ellipse((-38, 10), (72, 12), (14, 6), (8, 3), (1.05, 0.52))
    others.append(Structure(shape, -24, 3, 0.8, 0.7, -0.2, 0))
  for _ in range(rng.integers(1, 4)):  # Vessels.
    shape = ellipse((0, 60), (50, 45), (4, 2), (2.4, 1), (0, 3))
    others.append(Structure(shape, -20, 2, 0.6, 0.5, -0.1, 0))
  for _ in range(rng.integers(3, 8)):  # Bright fascia and gas.
    shape = ellipse((0, 65), (70, 65), (12, 9), (2.4, 1.6), (0, 1.2))
    others.append(Structure(shape, around(8, 3), 0, 2, 0, 0.15, 0))
  for _ in range(rng.integers(1, 4)):  # Muscle, much like a symphysis.
    shape = ellipse((32, 30), (50, 40), (17, 6), (7, 3), (-0.8, 0.9))
    others.append(Structure(shape, around(-2, 4), 3.5, 1.2, 0.3, 0.1, 0))
  direction, phase = 2 * np.pi * rng.random((2, 12))
  number = 2 * np.pi / (8 + 60 * rng.random(12) ** 2)
  amplitude = 0.6 + 1.6 * rng.random(12)
  waves = np.stack(
    [number * np.cos(direction), number * np.sin(direction), phase, amplitude],
    axis=1,
  )
  return Anatomy(
    symphysis, head, midline, tuple(others), waves, progression_deg
  )


def _place_head(symphysis, progression, along, head):
  """Centres `head` (an Ellipse) for an angle of progression in radians.

  The tangent point lies near `along` mm from the symphysis' lower end, or
  further where the two would come closer than 4 mm.
  """
  axis = np.array([np.cos(symphysis.angle), np.sin(symphysis.angle)])
  end = np.array([symphysis.x, symphysis.y]) + symphysis.a * axis
  # From the upper end over the head to the tangent: anticlockwise on the
  # screen, hence the minus, as y points down.
  angle = symphysis.angle + np.pi - progression
  tangent = np.array([np.cos(angle), np.sin(angle)])
  normal = np.array([-tangent[1], tangent[0]])
  turn = head.angle - angle
  support = np.hypot(head.a * np.sin(turn), head.b * np.cos(turn))
  t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
  contour = end - symphysis.a * axis + np.stack(
    [symphysis.a * np.cos(t), symphysis.b * np.sin(t)], axis=1
  ) @ np.array([axis, [-axis[1], axis[0]]])  # fmt: skip
  while True:
    x, y = end + along * tangent + support * normal
    head = head._replace(x=float(x), y=float(y))
    if distance(*contour.T, head)[0].min() > 4.0:
      return head
    along += 1.0


def distance(
  x: np.ndarray, y: np.ndarray, shape: Ellipse
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Measures signed distances to an ellipse to first order, negative inside.

  Args:
    x: in mm, any shape and floating dtype.
    y: in mm, broadcasts with x.
    shape: the ellipse.

  Returns:
    The distance in mm and the unit outward normal's x and y, like `x`.
  """
  # With Python floats throughout, since NumPy ones turn float32 into float64.
  c, s = math.cos(shape.angle), math.sin(shape.angle)
  dx, dy = x - shape.x, y - shape.y
  u, v = c * dx + s * dy, c * dy - s * dx
  gu, gv = u / shape.a**2, v / shape.b**2
  level = np.sqrt(u * gu + v * gv)
  slope = np.sqrt(gu * gu + gv * gv) + 1e-6
  gu /= slope
  gv /= slope
  return (level - 1.0) * level / slope, c * gu - s * gv, s * gu + c * gv


def move(shape: Ellipse, right: float, down: float, turn: float) -> Ellipse:
  """Turns an ellipse about (0, 60) mm and shifts it: the probe's motion.

  Args:
    shape: the ellipse.
    right: in mm.
    down: in mm.
    turn: in radians, clockwise on the screen.
  """
  c, s = math.cos(turn), math.sin(turn)
  x, y = shape.x, shape.y - 60.0
  return shape._replace(
    x=c * x - s * y + right,
    y=s * x + c * y + 60.0 + down,
    angle=shape.angle + turn,
  )
