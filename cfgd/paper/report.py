"""The report of a sweep with the paper's numbers and claims.

Where `config.sweep.paper` names a table of Ho & Salimans (arXiv:2207.12598),
its numbers stand beside ours. With several seeds, its claims are tested.
"""

import dataclasses
import functools

from absl import logging
import numpy as np

from cfgd import build
from cfgd.paper import claims
from cfgd.paper import printed
from cfgd.paper import verdicts
from cfgd.report import blocks
from cfgd.report import page
from cfgd.report import plots
from cfgd.report import summary as summary_lib
from cfgd.runtime import errors

_REMARKS = {
  "frontier_p_uncond": "In the form of the paper's Figure 4.",
  "frontier_T": "In the form of the paper's Figure 5.",
}
_GROUPS = {"Main claims": True, "Secondary": False}
# Okabe & Ito's green and vermilion, and grey.
_COLOURS = {
  verdicts.HOLDS: "#007A5A",
  verdicts.FAILS: "#D55E00",
  verdicts.OPEN: "#777777",
}
_FOREST = (
  "Each claim's estimate over the seeds with its {confidence:.0%} interval. "
  "Thin: the interval that holds for all main claims at once, by Bonferroni; "
  "Holm's method, which decides, is a little sharper. Secondary claims are not "
  "corrected. Band: what counts as alike."
)
_NEEDED = (
  "Seeds that would resolve a claim with a probability of 80% if the estimate "
  "is right."
)
_STATISTIC = "statistic, and where it has to be"
_COLUMNS = (
  *("claim", "who says so", _STATISTIC, "each seed", "mean and interval"),
  *("p", "p (Holm)", "verdict"),
)
_PRIMARY = (
  "The paper's main claims. Their p-values are corrected for each other by "
  "Holm's method: with a probability of at least {confidence:.0%}, none of "
  "these verdicts is wrong."
)
_SECONDARY = (
  "Secondary claims, not corrected: each verdict is wrong with a probability "
  "of at most {error:.0%}, so a few of many may be."
)
_TESTS = (
  "Tests are two-sided Student's t tests over the seeds. A claim holds if p "
  "is at most {error:g} and the data agrees with it, does not hold if p is at "
  "most {error:g} and the data contradicts it, and is not resolved otherwise. "
  "Whether two things are alike is decided by two one-sided tests. Where a "
  "statistic compares minima, p and interval account for the choice of the "
  "minimum. Means of ratios are geometric; each interval has {confidence:.0%} "
  "confidence on its own."
)
_UNTESTED_COPIES = (
  "Whether training images are copied is not tested: a model can copy only "
  "what it has seen often, and this training saw each image {epochs} "
  "(sweep.claims.copied_epochs={needed:g}). The estimated share of copies, "
  "averaged over the main curve, is {share:.3f}."
)


def writer(config):
  """Return the function that `sweep.runner.sweep` writes its report with.

  Raises:
    errors.UserError: sweep.paper names no table.
  """
  return functools.partial(_write, printed.table(config.sweep.paper))


def _write(table, config, workdir, plan):
  summary = summary_lib.of_sweep(config, workdir, plan)
  page.write(add(summary, table, _epochs(config)), workdir)


def _epochs(config):
  """Return how often training sees each image; None without the data set."""
  try:
    source = build.source(config, "train")
  except errors.UserError as error:
    logging.info("The number of training images is unknown: %s", error)
    return None
  return config.train.steps * config.train.batch_size / len(source)


def add(summary, table, epochs):
  """Return a Summary with the paper's numbers and claims.

  Args:
    summary: of the sweep.
    table: the paper's table to compare with; None for none.
    epochs: how often training saw each image; None if unknown.
  """
  lead, sections = [], []
  if summary.config.sweep.seeds and summary.results:
    limits = claims.Limits(**summary.config.sweep.claims)
    tested = claims.test(
      *(summary.results, summary.distance, summary.score),
      main=tuple(summary.main.values()),
      limits=limits,
      epochs=epochs,
    )
    decided = verdicts.decide(tested, limits.confidence)
    pairs = list(zip(tested, decided, strict=True))
    found = tally([d for claim, d in pairs if claim.primary])
    lead.append(_verdicts(pairs, limits.confidence))
    sections.append(_numbers(pairs, summary, limits, epochs))
    summary = dataclasses.replace(summary, tally=found)
  return dataclasses.replace(
    summary, beside=table, remarks=_REMARKS, lead=lead, sections=sections
  )


def _verdicts(pairs, confidence):
  """Return the section that says at a glance what was found.

  Args:
    pairs: [(verdicts.Claim, verdicts.Decision)].
    confidence: 1 minus the error rate.
  """
  if not pairs:
    return blocks.Section("Claims", [])
  found = [claim for claim, _ in pairs if claim.primary]
  groups = {
    title: [
      _effect(*pair, confidence, len(found) if primary else 0)
      for pair in pairs
      if pair[0].primary == primary and pair[0].neutral
    ]
    for title, primary in _GROUPS.items()
  }
  forest = plots.png(plots.forest_figure(groups))
  caption = _FOREST.format(confidence=confidence)
  parts = [
    blocks.Picture("claims", caption, forest),
    *_open(pairs, confidence),
  ]
  return blocks.Section("Claims", parts, "wide")


def tally(decisions):
  """Return a sentence that counts the verdicts on the primary claims."""
  if not decisions:
    return ""
  found = [decision.verdict for decision in decisions]
  holds, fails, undecided = map(
    found.count, (verdicts.HOLDS, verdicts.FAILS, verdicts.OPEN)
  )
  return (
    f"Of the paper's {len(found)} main claims that were tested, {holds} "
    f"{'holds' if holds == 1 else 'hold'} on this data, {fails} "
    f"{'does' if fails == 1 else 'do'} not, and {undecided} "
    f"{'is' if undecided == 1 else 'are'} not resolved."
  )


def _effect(claim, decision, confidence, family):
  """Return a row of the forest plot, of a family of so many claims."""
  low, middle, high = claim.interval(confidence)
  outer = claim.interval(1 - (1 - confidence) / family) if family else None
  return plots.Effect(
    claim.text,
    *(low, middle, high, outer and (outer[0], outer[2]), claim.neutral),
    claim.range() if claim.alike is not None else None,
    decision.verdict,
    _COLOURS[decision.verdict],
  )


def _open(pairs, confidence):
  """Return a table of claims that are not resolved, and what would do it."""
  count = sum(claim.primary for claim, _ in pairs)
  rows = [
    {
      "not resolved": claim.text,
      "seeds": len(claim.values),
      "seeds that would resolve it": claim.seeds_needed(
        confidence, count if claim.primary else 1
      )
      or "more than 1,000, or unknown",
    }
    for claim, decision in pairs
    if decision.verdict == verdicts.OPEN
  ]
  if not rows:
    return []
  return [blocks.Table(list(rows[0]), [rows], prose=True), _NEEDED]


def _numbers(pairs, summary, limits, epochs):
  """Return the section with the tables of claims."""
  confidence = limits.confidence
  rows = {True: [], False: []}
  for claim, decision in pairs:
    rows[claim.primary].append(_row(claim, decision, confidence))
  numbers = {"confidence": confidence, "error": round(1 - confidence, 6)}
  parts = []
  for primary, caption in ((True, _PRIMARY), (False, _SECONDARY)):
    columns = [k for k in _COLUMNS if primary or k != "p (Holm)"]
    if rows[primary]:
      table = blocks.Table(columns, [rows[primary]], prose=True)
      parts += [caption.format(**numbers), table]
  parts += [_TESTS.format(**numbers)] if parts else []
  parts += _copies(summary, limits, epochs)
  return blocks.Section("Claims in numbers", parts, folded=True)


def _row(claim, decision, confidence):
  low, mean, high = claim.interval(confidence)
  wanted = f"above {claim.neutral:g}"
  if claim.alike is not None:
    wanted = "from {:.3g} to {:.3g}".format(*claim.range())
  row = {
    "claim": claim.text,
    "who says so": claim.source,
    _STATISTIC: f"{claim.statistic}; {wanted}",
    "each seed": ", ".join(f"{value:.4g}" for value in claim.values),
    "mean and interval": f"{mean:.4g} [{low:.4g}, {high:.4g}]",
    "p": f"{decision.p:.2g}",
    "verdict": decision.verdict,
  }
  if claim.primary:
    row["p (Holm)"] = f"{decision.corrected:.2g}"
  return row


def _copies(summary, limits, epochs):
  """Return why copies are not tested, where they could be but for that."""
  results = summary_lib.select(summary.plain, **summary.main)
  share = np.mean([result.metric("copied") for result in results])
  if claims.can_copy(epochs, limits) or not np.isfinite(share):
    return []
  seen = "an unknown number of times"
  if epochs is not None:
    seen = f"{epochs:.2g} times"
  needed = limits.copied_epochs
  return [_UNTESTED_COPIES.format(epochs=seen, needed=needed, share=share)]
