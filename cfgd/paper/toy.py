"""Figure 2 of the paper: guidance of three Gaussians with exact scores.

Every class is a Gaussian in the plane, so density, score and classifier are
known at every log-SNR. They have the interface of `cfgd.diffusion`: points are
images [B, 1, 1, 2], and the null label is the number of classes. This isolates
guidance itself: the densities that its formula suggests, and the samples that
the guided score gives.
"""

import functools
import itertools
import json
from typing import NamedTuple

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
from matplotlib import colors
from matplotlib import figure
import numpy as np

from cfgd import diffusion
from cfgd import guidance as guidance_lib
from cfgd.report import blocks
from cfgd.report import plots
from cfgd.runtime import errors
from cfgd.runtime import files

SCHEDULE = diffusion.Schedule(-20.0, 20.0)
SAMPLERS = ("ancestral", "ddim")
GUIDANCES = ("classifier-free", "classifier")

_MEASURED = ("distance", "floor", "spread", "exact_spread")
_SHAPE = (1, 1, 2)
# Exact draws by rejection take too long above.
_MAX_W = 100
_NUM_DRAWS = 5
_NUM_DIRECTIONS = 64
_EXTENT = 3.1
_GRID = 240
_LINE = np.linspace(-_EXTENT, _EXTENT, _GRID)
# Okabe & Ito's colours, which colour-blind readers tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73")


class Mixture(NamedTuple):
  """Isotropic Gaussians, one per class.

  Attributes:
    means: [K, D].
    stds: [K].
    weights: [K] p(c), of sum 1.
  """

  means: np.ndarray
  stds: np.ndarray
  weights: np.ndarray


_ANGLES = np.deg2rad([90.0, 210.0, 330.0])
THREE = Mixture(
  means=np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1),
  stds=np.full(3, 0.6),
  weights=np.full(3, 1 / 3),
)


# Exact densities, scores and classifier of z_lambda.


def _moments(mixture, z, logsnr):
  """Return z - alpha mean [B, K, D], the variances [B, K] and sigma [B]."""
  alpha, sigma = diffusion.alpha_sigma(logsnr)
  means = alpha[:, None, None] * mixture.means
  variance = (alpha[:, None] * mixture.stds) ** 2 + sigma[:, None] ** 2
  return z.reshape(z.shape[0], 1, -1) - means, variance, sigma


def log_density(mixture, z, logsnr):
  """Return log p(z_lambda | c) [B, K] for points z [B, ...] of D numbers."""
  offset, variance, _ = _moments(mixture, z, logsnr)
  size = offset.shape[-1]
  return -0.5 * (
    jnp.sum(offset**2, axis=-1) / variance
    + size * jnp.log(2.0 * jnp.pi * variance)
  )


def log_probs(mixture):
  """Make the exact classifier: (z, logsnr) -> [B, K] log p(c | z_lambda)."""

  def classify(z, logsnr):
    joint = log_density(mixture, z, logsnr) + jnp.log(mixture.weights)
    return jax.nn.log_softmax(joint)

  return classify


def denoiser(mixture):
  """Make the exact DenoiseFn; label K gives the unconditional score."""
  classify = log_probs(mixture)
  num_classes = len(mixture.weights)

  def denoise(z, logsnr, label):
    offset, variance, sigma = _moments(mixture, z, logsnr)
    eps = sigma[:, None, None] * offset / variance[..., None]  # [B, K, D]
    share = jnp.where(
      (label == num_classes)[:, None],
      jnp.exp(classify(z, logsnr)),
      jax.nn.one_hot(label, num_classes),
    )
    eps = jnp.sum(share[..., None] * eps, axis=1)
    return diffusion.Prediction(eps.reshape(z.shape))

  return denoise


# The target of guidance: p(x | c) p(c | x)^w, normalised for each class.


def guided_density(mixture, x, w, *, cell):
  """Return the guided densities [N, K] of section 3, each of integral 1.

  Args:
    mixture: Mixture.
    x: [N, 2] points of a grid that holds nearly all of the mass.
    w: guidance strength.
    cell: area per point.
  """
  logsnr = jnp.full(len(x), SCHEDULE.logsnr_max)
  log_guided = log_density(mixture, x, logsnr) + w * log_probs(mixture)(
    x, logsnr
  )
  return np.asarray(jax.nn.softmax(log_guided, axis=0)) / cell


def draw_guided(mixture, label, w, rng):
  """Draw exactly from the guided conditionals, by rejection.

  A draw from p(x | c) is accepted with probability p(c | x)^w.

  Returns:
    [N, D], a draw for each of the labels [N].
  """
  means, stds = mixture.means[label], mixture.stds[label]
  x = np.empty_like(means)
  left = np.arange(len(label))
  while left.size:
    drawn = rng.standard_normal(x[left].shape) * stds[left, None] + means[left]
    offset = drawn[:, None] - mixture.means
    joint = np.log(mixture.weights) - 2.0 * np.log(mixture.stds)
    joint = joint - 0.5 * np.sum(offset**2, axis=-1) / mixture.stds**2
    own = joint[np.arange(left.size), label[left]]
    log_keep = w * (own - np.logaddexp.reduce(joint, axis=1))
    keep = np.log(rng.uniform(size=left.size)) < log_keep
    x[left[keep]] = drawn[keep]
    left = left[~keep]
  return x


# Samples with the guided score.


@functools.partial(jax.jit, static_argnames=("sampler", "guidance"))
def sample(mixture, seed, label, w, logsnrs, v, *, sampler, guidance):
  """Draw with a guided exact score; every number is traced.

  Args:
    mixture: Mixture.
    seed: int.
    label: [N] int.
    w: guidance strength.
    logsnrs: [T], see `diffusion.Schedule.grid`.
    v: variance interpolation of the ancestral sampler.
    sampler: one of SAMPLERS.
    guidance: one of GUIDANCES.

  Returns:
    [N, 2]; sample i is a function of (seed, i), its label and the settings.
  """
  exact = denoiser(mixture)
  denoise = {
    "classifier-free": diffusion.classifier_free_guidance(
      exact, w, null_label=len(mixture.weights), two_passes=True
    ),
    "classifier": guidance_lib.classifier_guidance(
      exact, guidance_lib.classifier_score(log_probs(mixture), w)
    ),
  }[guidance]
  keys = diffusion.image_keys(seed, jnp.arange(len(label)))
  x = diffusion.SAMPLERS[sampler].sample(
    diffusion.predictor(denoise, threshold=diffusion.no_threshold, v=v),
    keys,
    diffusion.normal(diffusion.fold_in(keys, 0), _SHAPE),
    label,
    logsnrs,
  )
  return x.reshape(len(label), -1)


def sliced_wasserstein(a, b):
  """Return the sliced 1-Wasserstein distance of two sets of samples [N, 2].

  It is the mean over 64 directions of the mean distance between the sorted
  projections.
  """
  angles = np.pi * np.arange(_NUM_DIRECTIONS) / _NUM_DIRECTIONS
  directions = np.stack([np.cos(angles), np.sin(angles)])
  a, b = (np.sort(points @ directions, axis=0) for points in (a, b))
  return float(np.abs(a - b).mean())


def class_distance(a, b, label):
  """Return the mean of `sliced_wasserstein` over the classes."""
  classes = [label == c for c in set(label)]
  return float(np.mean([sliced_wasserstein(a[k], b[k]) for k in classes]))


def spread(x, label):
  """Return the root of the mean variance within a class."""
  variances = [x[label == c].var(axis=0) for c in set(label)]
  return float(np.sqrt(np.mean(variances)))


def measure(mixture, label, w, *, num_steps, v, seed):
  """Sample with every sampler and guidance, and compare with exact draws.

  Returns:
    (rows, samples) in the same order. A row has the "distance" of its samples
    [N, 2] to exact draws from the guided density, the "floor" that exact draws
    have among themselves, and the "spread" of both.
  """
  rng = np.random.default_rng(seed)
  draws = [draw_guided(mixture, label, w, rng) for _ in range(_NUM_DRAWS)]
  pairs = itertools.combinations(draws, 2)
  exact = {
    "floor": np.mean([class_distance(*pair, label) for pair in pairs]).item(),
    "exact_spread": np.mean([spread(draw, label) for draw in draws]).item(),
  }
  logsnrs = SCHEDULE.grid(num_steps)
  rows, samples = [], []
  for sampler, guidance in itertools.product(SAMPLERS, GUIDANCES):
    names = {"sampler": sampler, "guidance": guidance}
    x = np.asarray(sample(mixture, seed, label, w, logsnrs, v, **names))
    distance = np.mean([class_distance(x, draw, label) for draw in draws])
    found = {"distance": distance.item(), "spread": spread(x, label)}
    rows.append({"w": w, "s": 1.0 + w, **names, **found, **exact})
    samples.append(x)
  return rows, samples


# The figure and the table.


def run(out, *, w, num_steps, v, num_samples, seed):
  """Draw figure2.png, and measure samples against the exact densities.

  Args:
    out: folder of the figure and distances.json.
    w: guidance strengths, one column each.
    num_steps: T.
    v: variance interpolation of the ancestral sampler.
    num_samples: of all classes together.
    seed: of all randomness.

  Returns:
    The table as text.
  """
  out = epath.Path(out)
  settings = {"num_steps": num_steps, "v": v, "seed": seed}
  _check(out, w=w, num_samples=num_samples, **settings)
  label = np.arange(num_samples) % len(THREE.weights)
  measured = []
  for one in w:
    measured.append(measure(THREE, label, one, **settings))
    logging.info("w=%g: %d of %d done", one, len(measured), len(w))
  rows = [row for rows, _ in measured for row in rows]
  report = {**settings, "num_samples": num_samples, "rows": rows}
  files.write_atomic(out / "distances.json", json.dumps(report, indent=2))
  with files.open_atomic(out / "figure2.png") as file:
    draw_figure(measured, label).savefig(file, format="png", dpi=100)
  return table(rows)


def _check(out, *, w, num_steps, v, num_samples, seed):
  bad_w = [f"{one:g}" for one in w if not 0 <= one <= _MAX_W]
  for wrong, message in (
    (out.exists() and not out.is_dir(), f"--out={out}: is a file"),
    (not w, "--w: give at least one number"),
    (bad_w, f"--w={', '.join(bad_w)}: must be in 0..{_MAX_W}"),
    (len(set(w)) < len(w), "--w: contains a number twice"),
    (num_steps < 2, f"--T={num_steps}: must be at least 2"),
    (not 0 <= v <= 1, f"--variance_v={v:g}: must be in 0..1"),
    (num_samples < 30, f"--samples={num_samples}: must be at least 30"),
    (not 0 <= seed < 2**31, f"--seed={seed}: must be in 0..2^31-1"),
  ):
    if wrong:
      raise errors.UserError(message)


def table(rows):
  """Return rows of `measure` as a Markdown table."""
  columns = ("w", "sampler", "guidance", *_MEASURED)
  rows = [row | {"w": plots.both(row["w"])} for row in rows]
  return blocks.Table(columns, [rows]).markdown()


def draw_figure(measured, label):
  """Draw densities above and samples below, one column for each w.

  Args:
    measured: list of what `measure` returns.
    label: [N] int.
  """
  size = len(measured)
  page = figure.Figure(figsize=(2.2 * size + 0.6, 7.4), layout="constrained")
  axes = page.subplots(3, size, squeeze=False, sharex=True, sharey=True)
  for (rows, samples), (above, *below) in zip(measured, axes.T, strict=True):
    w = rows[0]["w"]
    density = _draw_density(above, w)
    above.set_title(f"w = {w:g}  (s = {1 + w:g})")
    shown = [i for i, r in enumerate(rows) if r["guidance"] == GUIDANCES[0]]
    for axis, i in zip(below, shown, strict=True):
      _draw_samples(axis, samples[i], label, density)
      axis.set_xlabel(
        f"distance {rows[i]['distance']:.3f}\n"
        f"(exact draws {rows[i]['floor']:.3f})",
        fontsize=8,
      )
  names = ("guided density", "ancestral samples", "DDIM samples")
  for axis, name in zip(axes[:, 0], names, strict=True):
    axis.set_ylabel(name, fontsize=11)
  axes[0, 0].set(xticks=[], yticks=[])
  page.supxlabel(
    "Top: p(c) p(x|c) p(c|x)^w, normalised for each class c. Below: samples "
    "with the exact score; contours at 50 % and 5 % of each class's peak.",
    fontsize=9,
  )
  return page


def _draw_density(axis, w):
  """Mix the classes' colours by p(c) p(x | c) p(c | x)^w, and return these."""
  grid = np.stack(np.meshgrid(_LINE, _LINE), axis=-1).reshape(-1, 2)
  density = guided_density(THREE, grid, w, cell=(_LINE[1] - _LINE[0]) ** 2)
  density = (density * THREE.weights).reshape(_GRID, _GRID, -1)
  tints = 1.0 - np.array([colors.to_rgb(colour) for colour in _COLOURS])
  axis.imshow(
    np.clip(1.0 - density / density.sum(axis=-1).max() @ tints, 0, 1),
    extent=(-_EXTENT, _EXTENT, -_EXTENT, _EXTENT),
    origin="lower",
  )
  return density


def _draw_samples(axis, x, label, density):
  """Draw samples over contours of the densities that they should have."""
  style = {"colors": "black", "linewidths": 0.6}
  for c, colour in enumerate(_COLOURS):
    axis.scatter(*x[label == c].T, s=2, color=colour, alpha=0.5, linewidths=0)
    levels = np.array([0.05, 0.5]) * density[..., c].max()
    axis.contour(_LINE, _LINE, density[..., c], levels=levels, **style)
  axis.set(xlim=(-_EXTENT, _EXTENT), ylim=(-_EXTENT, _EXTENT), aspect="equal")
