"""Which client has which examples, and a table of it.

    hospitals = partition(examples, splits, mode='iid', num_clients=3)
    print(table(hospitals, class_names))

A client has whole subjects, in every split. N examples, K classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tabulate

from ppcmi_jax import examples as examples_lib
from ppcmi_jax import official_draws

MODES = ('by_site', 'iid', 'by_subject', 'dirichlet', 'official')
DRAWS = 1000  # of Dirichlet shares, until no client is empty

Examples = examples_lib.Examples
Hospitals = Mapping[str, Mapping[str, Examples]]


def partition(
  examples: Examples,
  splits: np.ndarray,
  *,
  mode: str = 'by_site',
  num_clients: int | None = None,
  alpha: float = 1.0,
  seed: int = 0,
) -> dict[str, dict[str, Examples]]:
  """Returns {client: {split: Examples}}.

  Args:
    examples: of any sites and subjects.
    splits: [N], 'train', 'valid', 'test', or others for no split.
    mode: 'by_site': one client a site, by its name. 'iid': subjects are dealt
      at random, as evenly within each split as numbers allow. 'by_subject': one
      client a subject, by its name (which needs split='blocks'); or, with
      `num_clients`, contiguous blocks of subjects in the order of their names,
      within each split. 'dirichlet': see `dirichlet_clients`. 'official': the
      published code's, cases one by one, to be used with split='official', the
      same seed and number of clients; as there, every client is tested on all
      test cases (the arrays are shared).
    num_clients: how many, named 'client-1', ...; given by the data in 'by_site'
      and, if None, in 'by_subject'.
    alpha: evenness of 'dirichlet', above 0.
    seed: of the draw.

  Raises:
    ValueError: an unknown mode, an argument that it needs, or a client without
      a training, validation or test case.
  """
  used = np.isin(splits, examples_lib.SPLITS)
  if mode == 'by_site':
    client = examples.site
  elif mode == 'by_subject' and num_clients is None:
    client = examples.subject
  elif mode not in MODES:
    raise ValueError(
      f'partition: expected one of {", ".join(MODES)}, found {mode!r}'
    )
  elif not isinstance(num_clients, int) or num_clients < 1:
    raise ValueError(
      f'num_clients: partition={mode!r} needs a whole number of at least 1, '
      f'found {num_clients!r}'
    )
  elif mode == 'official':
    number = np.zeros(len(splits), int)
    rows = np.flatnonzero(np.isin(splits, ['train', 'valid']))
    dealt = official_draws.dealt_cases(examples.case[rows], num_clients, seed)
    for k, part in enumerate(dealt):
      number[rows[part]] = k
    client = _names(number, num_clients)
  elif mode == 'dirichlet':
    client = _names(
      dirichlet_clients(examples, splits, num_clients, alpha, seed),
      num_clients,
    )
  else:
    rng = np.random.default_rng(seed) if mode == 'iid' else None
    number = np.zeros(len(splits), int)
    for subjects in _subjects_by_split(examples, splits).values():
      if rng is not None:
        rng.shuffle(subjects)
      for k, part in enumerate(np.array_split(subjects, num_clients)):
        number[np.isin(examples.subject, part)] = k
    client = _names(number, num_clients)
  everyone = (
    np.unique(client[used])
    if num_clients is None or mode == 'by_site'
    else _names(np.arange(num_clients), num_clients)
  )
  if mode == 'official':
    shared = examples_lib.take(examples, splits == 'test')
  hospitals = {
    str(name): {
      split: shared
      if mode == 'official' and split == 'test'
      else examples_lib.take(examples, (client == name) & (splits == split))
      for split in examples_lib.SPLITS
    }
    for name in everyone
  }
  for name, parts in hospitals.items():
    for split, part in parts.items():
      if len(part.case) == 0:
        raise ValueError(
          f'partition: client {name!r} has no {split} case; use '
          f'{_REMEDIES.get(mode, "fewer clients, or more subjects")}'
        )
  return hospitals


_REMEDIES = {
  'by_site': "a split with all three at each site, or partition='iid'",
  'by_subject': "num_clients of fewer clients, or split='blocks' with volumes",
  'dirichlet': 'a larger alpha, another seed, or fewer clients',
}


def _names(number: np.ndarray, num_clients: int) -> np.ndarray:
  """Returns 'client-1', ..., padded so that they sort by number."""
  digits = len(str(num_clients))
  return np.array([f'client-{k + 1:0{digits}d}' for k in number])


def _subjects_by_split(
  examples: Examples, splits: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns {splits that a subject is in: sorted subjects}; most are in one."""
  found: dict[str, list[str]] = {}
  used = np.isin(splits, examples_lib.SPLITS)
  for subject in np.unique(examples.subject[used]):
    here = np.unique(splits[used & (examples.subject == subject)])
    found.setdefault('+'.join(here), []).append(subject)
  return {names: np.array(found[names]) for names in sorted(found)}


def dirichlet_clients(
  examples: Examples,
  splits: np.ndarray,
  num_clients: int,
  alpha: float,
  seed: int,
) -> np.ndarray:
  """Returns the client of each example, int [N], skewed by class.

  A subject counts to the class that it shows most of *for a subject*: whose
  share of its pixels is highest against the mean share over all subjects (the
  largest structure would be the same in all), or to the background where it
  shows none. Of each class's subjects, every client gets a share drawn from a
  symmetric Dirichlet distribution, the same in all splits (Hsu et al.,
  arXiv:1909.06335). Shares are drawn anew, up to 1000 times, until every client
  has a subject in each split.

  Args:
    examples: of any sites.
    splits: [N], as `partition`.
    num_clients: at least 1.
    alpha: above 0; 100 is nearly even, 0.1 gives most of a class to one.
    seed: of the draw.

  Raises:
    ValueError: alpha is not a positive number.
  """
  if not 0 < alpha < np.inf:
    raise ValueError(f'alpha: expected a number above 0, found {alpha}')
  rng = np.random.default_rng(seed)
  subjects, of = np.unique(examples.subject, return_inverse=True)
  pixels = examples_lib.class_pixels(examples.mask)
  pixels = np.stack(
    [np.bincount(of, weights=column) for column in pixels.T], axis=-1
  )
  share = (pixels / pixels.sum(axis=1, keepdims=True))[:, 1:]
  relative = share / np.maximum(share.mean(axis=0), 1e-12)
  label = np.zeros(len(subjects), int)
  if share.shape[1]:
    label = np.where(share.any(axis=1), 1 + np.argmax(relative, axis=1), 0)
  groups = _subjects_by_split(examples, splits).values()
  number = np.zeros(len(subjects), int)
  for _ in range(DRAWS):
    shares = {
      k: rng.dirichlet(np.full(num_clients, alpha)) for k in np.unique(label)
    }
    everywhere = True
    for group in groups:
      rows = np.searchsorted(subjects, group)
      rng.shuffle(rows)
      for k, p in shares.items():
        mine = rows[label[rows] == k]
        ends = np.rint(np.cumsum(p)[:-1] * len(mine)).astype(int)
        for client, part in enumerate(np.split(mine, ends)):
          number[part] = client
      everywhere &= len(np.unique(number[rows])) == num_clients
    if everywhere:
      break
  return number[of]


def table(
  hospitals: Hospitals, class_names: Sequence[str] | None = None
) -> str:
  """Returns a table of client, split, cases, subjects, and cases of a class.

  Args:
    hospitals: {client: {split: Examples}}.
    class_names: background first; numbers if None.
  """
  rows = []
  for client, parts in hospitals.items():
    for split, part in parts.items():
      shown = (examples_lib.class_pixels(part.mask)[:, 1:] > 0).sum(axis=0)
      classes = ', '.join(
        f'{class_names[k] if class_names else k} {count}'
        for k, count in enumerate(shown, start=1)
        if count
      )
      subjects = len(np.unique(part.subject))
      rows.append([client, split, len(part.case), subjects, classes or 'none'])
  return tabulate.tabulate(
    rows, ['client', 'split', 'cases', 'subjects', 'cases that show a class']
  )
