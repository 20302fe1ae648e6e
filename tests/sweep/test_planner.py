"""The cost of a sweep against sums by hand."""

import json
import types

import jax
import numpy as np
import pytest

from cfgd import build
from cfgd import diffusion
from cfgd import identity
from cfgd.runtime import errors
from cfgd.runtime import target
from cfgd.sweep import grid
from cfgd.sweep import planner
from configs import embedded
from configs import sweep_embedded_guidance


@pytest.mark.parametrize(
  ("fields", "desired"),
  [
    ({"w": 0.0}, 16),
    ({"w": 0.3}, 32),
    ({"w": 0.3, "sampler": "heun", "T": 15}, 30),
    ({"w": 0.3, "sampler": "heun", "T": 16, "grid": "edm"}, 32),
    # Even log-SNRs from -7 to 9: nine of 16 are above 0.
    ({"w": 0.3, "grid": "logsnr", "interval": (0.0, 100.0)}, 16 + 9),
    ({"w": 0.3, "guidance": "classifier"}, 16 + 16 * 2 * 0.25),
    ({"w": 0.0, "guidance": "classifier"}, 16),
    ({"w": 0.0, "guidance": "classifier_null"}, 16 + 16 * 2 * 0.25),
    ({"w": 0.3, "guidance": "auto"}, 16 + 16 * 0.25),
    ({"w": 0.3, "guidance": "marginal"}, 16 + 16 * (10 + 0.25)),
    ({"w": 0.3, "interval": (0.0, 100.0)}, 16 + 8),
    (
      {"w": 0.3, "guidance": "cfg+classifier", "classifier_w": 1.0},
      32 + 16 * 2 * 0.25,
    ),
    (
      {
        "w": 0.3,
        "guidance": "cfg+classifier",
        "classifier_w": 1.0,
        "interval": (0.0, 100.0),
      },
      16 + 8 + 8 * 2 * 0.25,
    ),
  ],
)
def test_evaluations_of_an_image(fields, desired):
  config = embedded.get_config()
  config.sampling.update(fields)
  assert planner.evaluations(config, 0.25) == desired


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("grid", ["uniform_u", "edm"])
@pytest.mark.parametrize("churn", [0.0, 40.0])
def test_a_counted_sampler_agrees(sampler, grid, churn):
  """Against evaluations counted where they are made."""
  config = embedded.get_config()
  config.sampling.update({"w": 0.3, "T": 8, "interval": (-3.0, 5.0)})
  config.sampling.update({"sampler": sampler, "grid": grid, "churn": churn})
  row = diffusion.SAMPLERS[sampler]
  made = []

  def denoise(z, logsnr, label):
    jax.debug.callback(lambda: made.append(1))
    return diffusion.Prediction(z)

  def guided(z, logsnr, label):
    inside = (logsnr[0] >= -3.0) & (logsnr[0] < 5.0)
    return diffusion.classifier_free_guidance(
      denoise, np.float32(0.3) * inside, null_label=10, two_passes=True
    )(z, logsnr, label)

  row.sample(
    diffusion.predictor(guided, threshold=diffusion.clip, v=0.3),
    diffusion.image_keys(0, np.arange(1)),
    *(np.ones((1, 2), np.float32), np.zeros(1, np.int32)),
    build.logsnrs(config),
    **{name: config.sampling[name] for name in row.moved_by},
  )
  jax.effects_barrier()
  assert planner.evaluations(config, 0.0) == len(made)


def test_the_sum_of_a_sweep(tmp_path):
  config = sweep_embedded_guidance.get_config()
  plan = grid.plan(config, tmp_path)
  parts = planner.costs(config, plan)
  assert sum(part.cells for part in parts) == len(plan)
  one = build.forward_flop(config)
  # 400 steps of 64 images, forward and twice that back.
  assert parts[0].flop == pytest.approx(400 * 64 * 3 * one)
  assert parts[1].name == "training the classifier"
  cfg = next(part for part in parts if part.name == "p_uncond=0.1, T=16")
  assert cfg.flop == pytest.approx(1000 * (16 + 6 * 32) * one)
  lines = planner.table(parts, planner.Rates(3600 * 1000, 3600 * 1000))
  assert len(lines) == len(parts) + 2
  hours = sum(part.flop for part in parts) / one / 3600 / 3600 / 1000
  assert lines[-1].split()[-1] == f"{hours:.1f}"
  assert lines[2].split()[-1] != ""


def test_a_second_run_costs_what_its_config_says(tmp_path):
  config = embedded.get_config()
  config.sampling.guidance = "auto"
  config.sampling.guide_dir = str(tmp_path / "weaker")
  axes = {"p_uncond": (0.1,), "T": (16,), "w": (0.3,)}
  config.sweep.grids = {"main": axes}

  def lines():
    plan = grid.plan(config, tmp_path)
    (_, part) = planner.costs(config, plan)
    return part.evaluations, planner.table([part], planner.UNKNOWN)[-1]

  assert lines() == (32, planner._ASSUMPTION)
  weaker = embedded.get_config()
  weaker.model.channel_mult = (1,)
  weaker.model.attention_resolutions = (weaker.data.image_size,)
  identity.claim_workdir(weaker, tmp_path / "weaker", write=True)
  share = build.forward_flop(weaker) / build.forward_flop(config)
  evaluations, last = lines()
  assert evaluations == pytest.approx(16 + 16 * share)
  assert share < 0.9
  assert last.startswith("in all")


def test_a_plan_writes_nothing(tmp_path):
  lines = planner.price(
    sweep_embedded_guidance.get_config(), tmp_path, planner.UNKNOWN
  )
  assert "training the classifier" in lines[2]
  assert lines[-1].split()[:3] == ["in", "all", "33"]
  assert not list(tmp_path.iterdir())


def test_seeds_are_paid_for():
  config = sweep_embedded_guidance.get_config()
  alone = planner.price(config, "unused", planner.UNKNOWN)
  config.sweep.seeds = (0, 1, 2)
  lines = planner.price(config, "unused", planner.UNKNOWN)
  assert len(lines) == len(alone)
  assert "p_uncond=0.1, 3 seeds" in lines[1]
  for one, three in zip(alone[1:], lines[1:], strict=True):
    flop = [float(line.replace(",", "").split()[-1]) for line in (one, three)]
    assert flop[1] == pytest.approx(3 * flop[0], rel=0.01)


def test_hours_of_a_slice_are_the_compilers_estimate(monkeypatch, tmp_path):
  config = embedded.get_config()
  one = build.forward_flop(config)
  path = tmp_path / "estimates.json"
  rows = [
    {"config": "embedded", "forward_flop": one, "dtype": "float32"}
    | {"chip": "v5p", "what": what, "images_per_second_and_chip": rate}
    for what, rate in (("train", 10.0), ("sample", 7.0))
  ]
  path.write_text(json.dumps(rows))
  monkeypatch.setattr(planner, "_ESTIMATES", path)
  # Three passes of a step, two of guidance; 16 chips.
  rates = planner.rates(config, 0.0, "v5p:2x2x4")
  assert rates == (16 * 3 * 10.0, 16 * 2 * 7.0)
  # On a TPU's host, too, where upsampling needs fewer FLOP.
  tpu = types.SimpleNamespace(platform="tpu")
  monkeypatch.setattr(jax, "devices", lambda *_: [tpu])
  assert target.platform() == "tpu"
  assert planner.rates(config, 0.0, "v5p:2x2x4") == rates
  config.model.dtype = "bfloat16"
  with pytest.raises(errors.UserError, match="GFLOP in bfloat16 there"):
    planner.rates(config, 0.0, "v5p:2x2x4")
  parts = [
    planner.Cost("training", 0, 3, 1000, 3 * 1000 * one),
    planner.Cost("cell", 1, 32, 500, 32 * 500 * one),
  ]
  lines = planner.table(parts, planner.Rates(0.25, 0.5))
  hours = [line.split()[-1] for line in lines[1:]]
  assert hours == ["3.3", "8.9", "12.2"]


def test_a_rate_and_a_slice_exclude_each_other():
  with pytest.raises(errors.UserError, match="give one of them"):
    planner.rates(embedded.get_config(), 100.0, "v5p:2x2")


@pytest.mark.parametrize(
  ("topology", "message"),
  [
    ("v5p", "must be CHIP:SIDES"),
    ("v5p:2xb", "must be CHIP:SIDES"),
    ("v5p:2x²", "must be CHIP:SIDES"),
    ("v5p:0x2", "must be CHIP:SIDES"),
    ("v5p:9999x7", "69,993 chips; the largest slice of v5p has 6,144"),
    ("v9:2x2", "no estimate for a network of"),
  ],
)
def test_a_slice_without_an_estimate_is_refused(topology, message):
  with pytest.raises(errors.UserError, match=message):
    planner.rates(embedded.get_config(), 0.0, topology)
