"""Membership inference on a network, from its losses and those of others.

Threat. The attacker can compute the loss of an example under the trained
network (the server's own mapping network, or one it was given) and trains
M - 1 networks like it on random halves of a population of its own (shadow
models). It wants to know whether the example was in the training set. No
transform of latents bears on this question.

Here M networks were trained on random halves of the SUBJECTS (`halves`; frames
of one video are no independent members), and each is the target in turn, the
others being the shadow models. Every attack is a function of two arrays,

    losses [M, N]  loss of example n under network m, lower is better fitted
    member [M, N]  whether n was in m's training set

to scores [M, N], higher where membership is more likely:

  attack       score of example x under target t             source
  -----------  --------------------------------------------  ----------------
  threshold    - loss                                        Yeom et al. 2018
  lira online  log N(s; in) - log N(s; out)                  arXiv 2112.03570
  rmia         share of others z whose ratio of p(z | t)     arXiv 2312.03262
               to mean p(z) is below that of x / gamma

s = -log(loss) is nearly Gaussian for losses that are means of many numbers:
squared errors of latents, or cross-entropies of a mask's pixels. (The papers'
logit and their temperature 1 are for the cross-entropy of one label, a
probability.) in and out are the networks other than t that saw x and that did
not; where there are none, what they say of all examples.

AUC 0.5 is chance. Judge by the true positive rate at small false positive
rates; `evaluate` says where there are too few non-members to tell. Controls are
part of a result: an overfitted network must score high, and shuffled
memberships 0.5.

  >>> import numpy as np
  >>> member = halves(np.arange(200), num_models=16, seed=0)
  >>> noise = np.random.default_rng(0).normal(size=member.shape)
  >>> losses = np.exp(noise - 3 * member)
  >>> result = evaluate(lira(losses, member), member, subject=np.arange(200))
  >>> bool(result['auc'] > 0.95), result['notes'][0][:26]
  (True, 'tpr_at_0.001: too few non-')
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from ppcmi_jax import intervals

FPRS = (0.01, 0.001)
DELTA = 1e-9  # of the (epsilon, delta) that is audited
# Of the ROC curve, for a logarithmic axis.
ROC_FPRS = tuple(np.geomspace(1e-3, 1, 31).tolist())
# False positives that must be possible at a rate for it to mean anything.
_LEAST_FALSE_POSITIVES = 10
_TINY = 1e-30


def halves(subject: ArrayLike, *, num_models: int, seed: int) -> np.ndarray:
  """Draws, for each network, the half of the subjects that it trains on.

  The draws are independent: were each subject in exactly half of the networks,
  the memberships in the others would tell that in the target.

  Args:
    subject: [N], the name of each example's subject.
    num_models: M, at least 16 for a figure that is to be published.
    seed: of the draws.

  Returns:
    bool [M, N].
  """
  names, index = np.unique(np.asarray(subject), return_inverse=True)
  rng = np.random.default_rng(seed)
  ranks = [rng.permutation(len(names)) for _ in range(num_models)]
  return (np.stack(ranks) < len(names) // 2)[:, index]


def threshold(losses: ArrayLike, member: ArrayLike) -> np.ndarray:
  """Returns minus the loss [M, N]; uses no shadow models (Yeom et al. 2018)."""
  return -_check(losses, member)[0]


def lira(losses: ArrayLike, member: ArrayLike) -> np.ndarray:
  """Scores by the likelihood ratio attack (arXiv 2112.03570, algorithm 1).

  The deviations of the Gaussians are pooled over examples, as the paper advises
  for fewer than 64 shadow models; the means are each example's own.

  Args:
    losses: float [M, N].
    member: bool [M, N].

  Returns:
    float64 [M, N].

  Raises:
    ValueError: shapes, fewer than 4 networks, negative or not finite losses, a
      network beside which no other has members, or non-members.
  """
  losses, member = _check(losses, member)
  s = -np.log(np.maximum(losses, _TINY))
  inside, outside = (_leave_one_out(s, g) for g in (member, ~member))
  return stats.norm.logpdf(s, *inside) - stats.norm.logpdf(s, *outside)


def rmia(
  losses: ArrayLike,
  member: ArrayLike,
  *,
  gamma: float = 1.0,
  temperature: float | None = None,
) -> np.ndarray:
  """Scores by the robust membership inference attack (arXiv 2312.03262).

  p(x | t) = exp(-loss / temperature); p(x) averages it over shadow models, half
  of the weight on those that saw x. The population z is all examples.

  Args:
    losses: float [M, N].
    member: bool [M, N].
    gamma: by how much x has to beat z, at least 1 (the paper's gamma).
    temperature: by default the median loss.

  Returns:
    float64 [M, N] in [0, 1].

  Raises:
    ValueError: as `lira`.
  """
  losses, member = _check(losses, member)
  if temperature is None:
    temperature = max(np.median(losses), _TINY)
  log_p = -losses / temperature
  p = sum(_leave_one_out(np.exp(log_p), g)[0] for g in (member, ~member)) / 2
  ratio = log_p - np.log(np.maximum(p, _TINY))
  below = [
    np.searchsorted(np.sort(row), row - np.log(gamma), side='right')
    for row in ratio
  ]
  return np.stack(below) / losses.shape[1]


ATTACKS = {'threshold': threshold, 'lira_online': lira, 'rmia': rmia}


def subject_means(values: ArrayLike, subject: ArrayLike) -> np.ndarray:
  """Averages [M, N] over the examples of each subject, to [M, P].

  Subjects are in the order of `np.unique`. Of losses it makes an attack on
  subjects; of memberships, which are equal within one, the subject's.
  """
  _, index, count = np.unique(
    np.asarray(subject), return_inverse=True, return_counts=True
  )
  values = np.asarray(values, np.float64)
  sums = np.zeros((len(values), len(count)))
  np.add.at(sums, (slice(None), index), values)
  return sums / count


def evaluate(
  scores: ArrayLike,
  member: ArrayLike,
  *,
  subject: ArrayLike,
  fprs: Sequence[float] = FPRS,
  num_draws: int = 1000,
  seed: int = 0,
) -> dict:
  """Measures an attack, pooled over all targets, with intervals over subjects.

  An attacker who draws lots between two thresholds reaches a little more: the
  hull of this curve, of which jax_privacy's auditor takes the area.

  Args:
    scores: float [M, N] of one attack.
    member: bool [M, N].
    subject: [N], whose examples are drawn together by the bootstrap.
    fprs: false positive rates.
    num_draws: of the bootstrap.
    seed: of the bootstrap.

  Returns:
    'auc', 'tpr_at_<fpr>' (the largest true positive rate of a threshold with at
    most that false positive rate), each with '<name>_interval', float [2], 95 %
    over subjects for these networks; 'roc', float [R], the same rates at each
    of ROC_FPRS; 'num_members' and 'num_non_members', pooled; 'notes', a list of
    lines on what the numbers can't tell.
  """
  scores, member = _check(scores, member, losses=False)
  subject = np.asarray(subject)
  names, index = np.unique(subject, return_inverse=True)
  order = np.argsort(-scores, axis=None, kind='stable')
  flat, is_member = scores.ravel()[order], member.ravel()[order]
  owner = np.broadcast_to(index, scores.shape).ravel()[order]
  last = np.append(flat[1:] != flat[:-1], True)  # of equal scores

  def curve(weight):
    tp = np.append(0.0, np.cumsum(weight * is_member)[last])
    fp = np.append(0.0, np.cumsum(weight * ~is_member)[last])
    return fp / max(fp[-1], 1), tp / max(tp[-1], 1)

  def rates_at(fprs, fpr, tpr):
    return tpr[np.searchsorted(fpr, fprs, side='right') - 1]

  def measure(weight):
    fpr, tpr = curve(weight)
    return [np.trapezoid(tpr, fpr), *rates_at(fprs, fpr, tpr)]

  rng = np.random.default_rng(seed)
  draws = rng.multinomial(
    len(names), np.full(len(names), 1 / len(names)), size=num_draws
  )
  draws = np.array([measure(times[owner]) for times in draws])
  bounds = intervals.percentile_interval(draws)
  count, once = int(np.sum(~member)), np.ones(flat.shape)
  result, notes = {}, []
  for name, value, interval in zip(
    ('auc', *(f'tpr_at_{rate:g}' for rate in fprs)),
    measure(once),
    bounds,
  ):
    result |= {name: float(value), f'{name}_interval': interval}
  for rate in fprs:
    needed = round(_LEAST_FALSE_POSITIVES / rate)
    if count < needed:
      notes.append(
        f'tpr_at_{rate:g}: too few non-members, {count} pooled of the {needed} '
        'needed'
      )
  if len(scores) < 16:
    notes.append(f'{len(scores)} networks only; 16 are the least to publish')
  result |= {
    'roc': rates_at(ROC_FPRS, *curve(once)),
    'num_members': member.size - count,
    'num_non_members': count,
    'notes': notes,
  }
  return result


def epsilon_bound(
  scores: ArrayLike,
  member: ArrayLike,
  *,
  subject: ArrayLike,
  significance: float = 0.05,
) -> float:
  """Returns a lower bound of the epsilon of the training, by jax_privacy.

  A single training is audited by its subjects, drawn in or out by chance
  (Steinke et al., arXiv 2305.08846), over all thresholds; the bound is the
  largest of the targets', with Bonferroni's correction for both. That exactly
  half of them are in, and not each by a coin, is left out of account.

  Args:
    scores: float [M, N] of one attack.
    member: bool [M, N].
    subject: [N], the name of each example's subject.
    significance: the chance that the bound is too high.

  Returns:
    The epsilon of one subject's examples, at `DELTA`.

  Raises:
    ModuleNotFoundError: without the optional package jax-privacy.
    ValueError: no members, or no non-members.
  """
  from jax_privacy import auditing  # optional, and slow to import

  scores, member = _check(scores, member, losses=False)
  member = subject_means(member, subject) > 0.5
  bounds = [
    auditing.CanaryScoreAuditor(
      values[inside], values[~inside]
    ).epsilon_one_run(significance / len(scores), DELTA)
    for values, inside in zip(subject_means(scores, subject), member)
  ]
  return float(max(bounds))


def _leave_one_out(s, group):
  """Returns each entry's mean over the other networks in group, and a std.

  The mean is of the same example, [M, N]; where no other network is in the
  group, that of all examples of the others. The std pools the deviations of
  all examples.
  """
  count = group.sum(0) - group
  sums = np.sum(s * group, axis=1)
  others = group.sum() - group.sum(1)
  if not others.all():
    raise ValueError(
      f'member: network {np.argmin(others)}: no other has a member, or a '
      'non-member; draw them by `halves`'
    )
  overall = (sums.sum() - sums) / others
  total = np.sum(s * group, axis=0) - s * group
  mean = np.where(count > 0, total / np.maximum(count, 1), overall[:, None])
  own = np.sum(s * group, axis=0) / np.maximum(group.sum(0), 1)
  squares = np.sum(np.square(s - own) * group)
  freedom = np.sum(np.maximum(group.sum(0) - 1, 0))
  return mean, max(np.sqrt(squares / max(freedom, 1)), 1e-12)


def _check(values, member, losses=True):
  values, member = np.asarray(values, np.float64), np.asarray(member)
  if values.ndim != 2 or member.shape != values.shape or member.dtype != bool:
    raise ValueError(
      'expected numbers [M networks, N examples] and bool memberships of the '
      f'same shape, found {list(values.shape)} and {member.dtype} '
      f'{list(member.shape)}'
    )
  if member.all() or not member.any():
    raise ValueError(
      'member: expected members and non-members, found one kind only; draw '
      'them by `halves`'
    )
  if losses:
    if not np.all(np.isfinite(values)) or values.min() < 0:
      raise ValueError('losses must be finite and at least 0')
    if len(values) < 4:
      raise ValueError(
        f'expected at least 4 networks, each the target in turn, found '
        f'{len(values)}'
      )
  return values, member
