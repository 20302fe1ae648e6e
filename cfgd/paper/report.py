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
from cfgd.report import summary as summary_lib
from cfgd.runtime import errors

_REMARKS = {
  "frontier_p_uncond": "In the form of the paper's Figure 4.",
  "frontier_T": "In the form of the paper's Figure 5.",
}
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
  sections = []
  if summary.config.sweep.seeds and summary.results:
    sections.append(_claims(summary, epochs))
  return dataclasses.replace(
    summary, beside=table, remarks=_REMARKS, sections=sections
  )


def _claims(summary, epochs):
  """Return the section with the tables of claims."""
  limits = claims.Limits(**summary.config.sweep.claims)
  confidence = limits.confidence
  tested = claims.test(
    *(summary.results, summary.distance, summary.score),
    main=tuple(summary.main.values()),
    limits=limits,
    epochs=epochs,
  )
  rows = {True: [], False: []}
  for claim, decision in zip(
    tested, verdicts.decide(tested, confidence), strict=True
  ):
    rows[claim.primary].append(_row(claim, decision, confidence))
  numbers = {"confidence": confidence, "error": round(1 - confidence, 6)}
  parts = []
  for primary, caption in ((True, _PRIMARY), (False, _SECONDARY)):
    columns = [k for k in _COLUMNS if primary or k != "p (Holm)"]
    if rows[primary]:
      table = blocks.Table(columns, [rows[primary]], prose=True)
      parts += [caption.format(**numbers), table]
  parts += [_TESTS.format(**numbers)] if parts else []
  return blocks.Section("Claims", parts + _copies(summary, limits, epochs))


def _row(claim, decision, confidence):
  low, mean, high = claim.interval(confidence)
  wanted = f"above {claim.neutral:g}"
  if claim.alike is not None:
    wanted = "from {:.3g} to {:.3g}".format(*claim.range())
  row = {
    "claim": claim.text,
    "who says so": claim.source,
    _STATISTIC: f"{claim.statistic}; {wanted}",
    "each seed": ", ".join(f"{value:.3g}" for value in claim.values),
    "mean and interval": f"{mean:.3g} [{low:.3g}, {high:.3g}]",
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
