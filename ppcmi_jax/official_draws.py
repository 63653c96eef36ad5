"""The random draws of the published code, repeated number by number.

Test cases are set apart first; the others, in the order of their names, are
dealt to the clients, and each client validates on some of its own.

Cases are drawn one by one, so that frames of a video, and slices of a patient,
lie on both sides: scores are too good. One more quirk is not repeated: there,
the mapping network is validated on another draw over the training *and*
validation latents of all clients, so that it trains on cases which the
autoencoders are validated on, and is validated on ones they were trained on.
Here everything trains on 'train' and is validated on 'valid'.
"""

import numpy as np

TESTS = ('random', 'subjects', 'prefix')


def dealt_cases(
  case: np.ndarray, num_clients: int, seed: int
) -> list[np.ndarray]:
  """Deals cases to clients as the published code does.

  Args:
    case: strings [N], in any order; names decide, not places.
    num_clients: how many parts.
    seed: of the draw.

  Returns:
    The rows of each client, in the order in which they were dealt; the sizes
    differ by at most one.
  """
  dealt = np.arange(len(case))
  np.random.default_rng(seed).shuffle(dealt)
  return np.array_split(np.argsort(case)[dealt], num_clients)


def draw(
  case: np.ndarray,
  subject: np.ndarray,
  kept: np.ndarray,
  *,
  num_clients: int,
  test: str,
  test_fraction: float,
  valid_fraction: float,
  seed: int,
  unused: str,
) -> np.ndarray:
  """Returns the split of each case: 'train', 'valid', 'test' or `unused`.

  Client k of 1, 2, ... shuffles what it was dealt with seed + k and validates
  on the first of it. The published defaults are three clients, seed 42, a tenth
  for testing and a fifth of each client for validation.

  Args:
    case: strings [N], unique.
    subject: strings [N].
    kept: bool [N]; others are in no split (the published way with empty masks).
    num_clients: at least 1.
    test: 'random' cases (the published way with nerve), whole 'subjects'
      (fumpe), or by 'prefix': cases named 'test/...', others 'train/...', for
      data with a folder of test cases (psfh, cardiac).
    test_fraction: share of cases or subjects; unused by 'prefix'.
    valid_fraction: share of each client's cases.
    seed: of every draw.
    unused: what cases that are not kept get.

  Raises:
    ValueError: an unknown `test`, a case without prefix.
  """
  rows = np.flatnonzero(kept)
  rows = rows[np.argsort(case[rows])]
  rng = np.random.default_rng(seed)
  if test == 'random':
    drawn = np.arange(len(rows))
    rng.shuffle(drawn)
    is_test = np.zeros(len(rows), bool)
    is_test[drawn[: round(test_fraction * len(rows))]] = True
  elif test == 'subjects':
    drawn = np.unique(subject)  # of all, also where none of theirs is kept
    rng.shuffle(drawn)
    drawn = drawn[: round(test_fraction * len(drawn))]
    is_test = np.isin(subject[rows], drawn)
  elif test == 'prefix':
    prefix = np.array([str(name).split('/')[0] for name in case[rows]])
    unknown = rows[~np.isin(prefix, ['train', 'test'])]
    if unknown.size:
      raise ValueError(
        'split: expected cases named train/... or test/..., found '
        f'{str(case[unknown[0]])!r}; use another official_test'
      )
    is_test = prefix == 'test'
  else:
    raise ValueError(
      f'official_test: expected one of {", ".join(TESTS)}, found {test!r}'
    )
  result = np.full(len(case), unused, dtype='<U5')
  result[rows[is_test]] = 'test'
  rest = rows[~is_test]
  dealt = dealt_cases(case[rest], num_clients, seed)
  for k, part in enumerate(dealt, start=1):
    np.random.default_rng(seed + k).shuffle(part)
    num_valid = round(valid_fraction * len(part))
    result[rest[part[:num_valid]]] = 'valid'
    result[rest[part[num_valid:]]] = 'train'
  return result
