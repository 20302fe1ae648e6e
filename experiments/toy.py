"""Draw the paper's Figure 2 with exact scores, and measure the samples.

  python -m experiments.toy --out=DIR

Three Gaussians, one class each: the guided densities for a row of w, and below
them what our samplers draw with the exact score. Writes DIR/figure2.png and
DIR/distances.json, and prints the table.
"""

from absl import flags

from cfgd.paper import toy
from experiments import launcher

_OUT = flags.DEFINE_string("out", None, "Folder to write.")
_W = flags.DEFINE_multi_float(
  "w", [0.0, 0.5, 1.0, 2.0, 4.0], "Guidance strengths; repeat for several."
)
_STEPS = flags.DEFINE_integer("T", 256, "Evaluations of the score.")
_V = flags.DEFINE_float(
  "variance_v", 0.3, "v, variance interpolation of the ancestral sampler."
)
_SAMPLES = flags.DEFINE_integer("samples", 3000, "Samples, of all classes.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all randomness.")
flags.mark_flag_as_required("out")


def main():
  """Draw, measure, print."""
  table = toy.run(
    _OUT.value,
    w=_W.value,
    num_steps=_STEPS.value,
    v=_V.value,
    num_samples=_SAMPLES.value,
    seed=_SEED.value,
  )
  print(table)
  print(f"Figure: {_OUT.value}/figure2.png")


if __name__ == "__main__":
  launcher.run(main)
