"""Scores of sets of images, with a small stand-in for Inception."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd.convert import inception as inception_weights
from cfgd.data import sources
from cfgd.metrics import collect
from cfgd.metrics import evaluate
from cfgd.metrics import extract
from cfgd.metrics import fid
from cfgd.metrics import image_sets
from cfgd.metrics import references
from cfgd.metrics import reports
from cfgd.metrics import scores
from cfgd.metrics import splits
from cfgd.models import inception
from cfgd.runtime import errors
from configs import base
from tests.metrics import oracles

FEATURES, SPATIAL, CLASSES = 12, 6, 5


def _weights(name):
  del name
  rng = np.random.default_rng(7)
  return {
    key: rng.normal(size=(48, size)).astype(np.float32)
    for key, size in (("a", FEATURES), ("b", CLASSES), ("c", SPATIAL))
  }


def _stand_in(params, images):
  x = images.reshape(len(images), -1).astype(jnp.float32) / 255 - 0.5
  return (
    jnp.tanh(x @ params["a"]),
    jax.nn.softmax(x @ params["b"]),
    x @ params["c"],
  )


@pytest.fixture(autouse=True)
def network(monkeypatch):
  monkeypatch.setattr(inception, "NUM_FEATURES", FEATURES)
  monkeypatch.setattr(inception, "NUM_SPATIAL", SPATIAL)
  monkeypatch.setattr(inception, "scorer", lambda protocol: _stand_in)
  monkeypatch.setattr(
    inception_weights,
    "load",
    lambda path, cache_dir: (_weights(path), f"inception-{path or 'none'}"),
  )
  fid._load_network.cache_clear()
  yield
  fid._load_network.cache_clear()


@pytest.fixture
def config(tmp_path):
  return make_config(tmp_path / "cache")


def make_config(cache_dir):
  config = base.get_config()
  config.metrics.cache_dir = str(cache_dir)
  config.metrics.min_images = 20
  config.metrics.chunk_size = 16
  config.metrics.inception_batch_size = 2
  config.metrics.num_splits = 3
  config.metrics.reference_features = 30
  return config


def draw(seed, count, high=256):
  rng = np.random.default_rng(seed)
  return rng.integers(0, high, (count, 4, 4, 3)).astype(np.uint8)


@pytest.fixture
def samples(tmp_path):
  return save(tmp_path / "samples.npz", draw(1, 50, high=200))


@pytest.fixture
def real(tmp_path):
  return save(tmp_path / "real.npz", draw(0, 70))


def save(path, images):
  np.savez(path, images)
  return str(path)


def outputs(images):
  return [np.asarray(out) for out in _stand_in(_weights(""), images)]


def test_every_number_is_what_it_is_called(config, samples, real, tmp_path):
  report = fid.evaluate(config, samples, real)
  features, probabilities, spatial = outputs(draw(1, 50, high=200))
  kept = np.sort(np.random.default_rng(0).permutation(70)[:30])
  real_features, _, real_spatial = outputs(draw(0, 70))
  expected = {}
  for name, rows, others in (
    ("fid50", features, real_features),
    ("sfid50", spatial, real_spatial),
  ):
    expected[name] = scores.frechet_distance(
      *(f(x) for x in (others, rows) for f in (np_mean, np_cov))
    )
  expected["is50"], expected["is_std50"] = scores.inception_score(
    probabilities, 3, np.random.default_rng(0)
  )
  expected["precision50"], expected["recall50"] = oracles.precision_recall(
    real_features[kept], features, 3
  )
  expected["kid50"] = scores.kernel_distance(real_features[kept], features)
  assert report["metrics"].keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(report["metrics"][name], value, rtol=1e-4)
  assert report["protocol"] == report["provenance"]["protocol"] == "adm"
  assert report["num_samples"] == 50
  assert report["provenance"]["feature_network"] == "inception-none"
  assert report["provenance"]["reference"]["count"] == 70
  assert "adm: fid50" in reports.line(report)
  written = tmp_path / "samples.adm.metrics.json"
  assert json.loads(written.read_text()) == report
  assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
  ("rows", "edges", "about"),
  [
    (5000, [0, 50], {"num_splits": 1}),
    (20, [0, 20, 40, 50], {"num_splits": 3, "split_rows": 20}),
  ],
)
def test_splits_are_those_of_the_protocol(
  config, samples, real, monkeypatch, rows, edges, about
):
  monkeypatch.setattr(splits, "ADM_ROWS", rows)
  config.metrics.num_splits = 0
  report = fid.evaluate(config, samples, real)
  expected = scores.inception_score(
    outputs(draw(1, 50, high=200))[1], edges, np.random.default_rng(0)
  )[0]
  np.testing.assert_allclose(report["metrics"]["is50"], expected, rtol=1e-5)
  assert ("is_std50" in report["metrics"]) == (len(edges) > 2)
  assert report["provenance"].items() >= about.items()
  assert f"(IS splits: {about['num_splits']})" in reports.line(report)


def np_mean(rows):
  return rows.astype(np.float64).mean(axis=0)


def np_cov(rows):
  return np.cov(rows.astype(np.float64), rowvar=False)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_number_depends_on_the_order(config, real, tmp_path, seed):
  # The splits of IS hold the same rows to the bit, the sums of the others are
  # added in another order: float64 gives 1e-12, and what follows 1e-9.
  images = draw(1, 50, high=200)
  shuffled = np.random.default_rng(seed).permutation(images)
  first, second = (
    fid.evaluate(config, save(tmp_path / name, some), real)["metrics"]
    for name, some in (("a.npz", images), ("b.npz", shuffled))
  )
  for name in ("is50", "is_std50", "precision50", "recall50"):
    assert first[name] == second[name]
  for name in ("fid50", "sfid50", "kid50"):
    np.testing.assert_allclose(first[name], second[name], rtol=1e-9)


def test_a_killed_run_goes_on(config, samples, real, monkeypatch):
  config.metrics.reference = real
  whole = fid.evaluate(config, samples, real)
  (result,) = json_files(samples)
  result.unlink()
  batches, seen = extract.batches, []

  def limited(limit):
    def run(scorer, params, images, *, batch_size):
      if len(seen) >= limit:
        raise RuntimeError("killed")
      seen.append(len(images))
      return batches(scorer, params, images, batch_size=batch_size)

    return run

  monkeypatch.setattr(extract, "batches", limited(2))
  with pytest.raises(RuntimeError, match="killed"):
    fid.evaluate(config, samples, real)
  assert not json_files(samples)
  monkeypatch.setattr(extract, "batches", limited(9))
  assert fid.evaluate(config, samples, real) == whole
  assert seen == [16, 16, 16, 2]
  assert fid.evaluate(config, samples, real) == whole
  assert len(seen) == 4


def json_files(samples):
  folder = image_sets.epath.Path(samples).parent
  return list(folder.glob("samples.*.json"))


def test_made_references_carry_what_they_are(config, samples, real, tmp_path):
  path = tmp_path / "made.npz"
  about = fid.make_reference(config, real, path)
  assert about["count"] == 70
  assert about["protocol"] == "adm"
  with np.load(path) as arrays:
    rows = outputs(draw(0, 70))[0]
    np.testing.assert_allclose(arrays["mu"], np_mean(rows), atol=1e-6)
    np.testing.assert_allclose(arrays["sigma"], np_cov(rows), atol=1e-6)
    assert arrays["mu_s"].shape == (SPATIAL,)
  made = fid.evaluate(config, samples, str(path))
  assert made["metrics"] == fid.evaluate(config, samples, real)["metrics"]
  before = path.stat().st_mtime_ns
  fid.make_reference(config, real, path)
  assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
  ("field", "value", "words"),
  [
    ("protocol", "pytorch_fid", "has protocol adm, not pytorch_fid"),
    ("inception", "x", "has feature_network inception-none, not inception-x"),
  ],
)
def test_other_statistics_are_refused(
  config, samples, real, tmp_path, field, value, words
):
  path = tmp_path / "made.npz"
  fid.make_reference(config, real, path)
  config.metrics[field] = value
  with pytest.raises(errors.UserError, match=words):
    fid.evaluate(config, samples, str(path))
  with pytest.raises(errors.UserError, match=words):
    fid.make_reference(config, real, path)
  assert not json_files(samples)


def test_other_sizes_and_preprocessing_are_refused(config, real, tmp_path):
  path = tmp_path / "made.npz"
  fid.make_reference(config, real, path)
  wide = save(tmp_path / "wide.npz", np.tile(draw(1, 50), (1, 2, 1, 1)))
  for reference in (real, str(path)):
    with pytest.raises(errors.UserError, match=r"image_size \[4, 4\], not \[8"):
      fid.evaluate(config, wide, reference)
  same = save(tmp_path / "same.npz", draw(1, 50))
  fid.evaluate(config, same, str(path), "set-area4")  # nobody wrote it down
  about = {"preprocessing": "set-area64"}
  with pytest.raises(errors.UserError, match="preprocessing set-area64, not"):
    references.check(about, {"preprocessing": "set-area4"}, "made.npz")


def test_foreign_statistics(config, samples, tmp_path):
  rows, _, spatial = outputs(draw(0, 70))
  mine = {"mu": np_mean(rows), "sigma": np_cov(rows)}
  np.savez(tmp_path / "pytorch_fid.npz", **mine)
  theirs = mine | {"mu_s": np_mean(spatial), "sigma_s": np_cov(spatial)}
  np.savez(tmp_path / "adm.npz", arr_0=draw(3, 25), **theirs)
  whole = fid.evaluate(
    config, samples, save(tmp_path / "real.npz", draw(0, 70))
  )["metrics"]
  config.metrics.protocol = "pytorch_fid"
  few = fid.evaluate(config, samples, str(tmp_path / "pytorch_fid.npz"))
  config.metrics.protocol = "adm"
  assert few["metrics"].keys() == {"fid50", "is50", "is_std50"}
  foreign = few["provenance"]["reference"]["foreign"]
  assert foreign.startswith("pytorch_fid.npz, sha256 ")
  more = fid.evaluate(config, samples, str(tmp_path / "adm.npz"))["metrics"]
  assert more.keys() == whole.keys()
  for name in ("fid50", "sfid50"):
    np.testing.assert_allclose(more[name], whole[name], rtol=1e-4)
  features = outputs(draw(1, 50, high=200))[0]
  np.testing.assert_allclose(
    more["kid50"],
    scores.kernel_distance(outputs(draw(3, 25))[0], features),
    rtol=1e-4,
  )
  np.savez(tmp_path / "wrong.npz", mu=np.zeros(3), sigma=np.eye(3))
  with pytest.raises(errors.UserError, match=r"are \(3,\) and \(3, 3\); need"):
    fid.evaluate(config, samples, str(tmp_path / "wrong.npz"))
  np.savez(tmp_path / "half.npz", mu=np.zeros(FEATURES))
  with pytest.raises(errors.UserError, match=r"not an \.npz of statistics"):
    fid.evaluate(config, samples, str(tmp_path / "half.npz"))


@pytest.mark.parametrize("start", (60, 20_000))
def test_damaged_compressed_statistics_are_refused(tmp_path, start):
  path = tmp_path / "theirs.npz"
  rows = np.random.default_rng(0).normal(size=(8, 2048))
  np.savez_compressed(path, mu=rows[0], sigma=rows.T @ rows)
  data = bytearray(path.read_bytes())
  data[start : start + 300] = b"\xff" * 300
  path.write_bytes(data)
  with pytest.raises(errors.UserError, match=r"not an \.npz of statistics"):
    references.read(path)


@pytest.mark.parametrize("beside", [(), ("mu_s", "sigma_s"), ("arr_0",)])
def test_statistics_of_another_protocol_are_refused(
  config, samples, tmp_path, beside
):
  rows, _, spatial = outputs(draw(0, 70))
  arrays = {"mu": np_mean(rows), "sigma": np_cov(rows)}
  others = {
    "mu_s": np_mean(spatial),
    "sigma_s": np_cov(spatial),
    "arr_0": draw(3, 25),
  }
  path = str(tmp_path / "foreign.npz")
  np.savez(path, **arrays, **{name: others[name] for name in beside})
  right, wrong = ("adm", "pytorch_fid") if beside else ("pytorch_fid", "adm")
  config.metrics.protocol = wrong
  with pytest.raises(
    errors.UserError,
    match=rf"form.*not of metrics\.protocol={wrong}: set .*protocol={right},",
  ):
    fid.evaluate(config, samples, path)
  assert not json_files(samples)
  config.metrics.protocol = right
  assert fid.evaluate(config, samples, path)["metrics"]["fid50"] > 0


@pytest.mark.parametrize(
  ("images", "words"),
  [
    (draw(1, 19), "19 images; a covariance of 12 features needs at least 20"),
    (draw(1, 50)[..., :1], "1 channels; Inception needs 3"),
    (draw(1, 50, high=2), "no pixel above 1"),
  ],
)
def test_bad_samples_are_refused(config, real, tmp_path, images, words):
  path = save(tmp_path / "samples.npz", images)
  with pytest.raises(errors.UserError, match=words):
    fid.evaluate(config, path, real)
  assert not json_files(path)


def test_a_missing_reference_is_told(config, samples):
  with pytest.raises(errors.UserError, match="reference nowhere: no such file"):
    fid.evaluate(config, samples, "nowhere")


def test_features_that_are_not_finite_are_refused(config, samples, real):
  fid.prepare(config, real, shared=None)
  fid._network(config).params["a"][0, 0] = np.nan
  with pytest.raises(errors.NonFiniteError, match=r"image 0 of .*samples\.npz"):
    fid.evaluate(config, samples, real)
  assert not json_files(samples)


def test_fewer_images_than_features_are_finite(config, real, tmp_path):
  config.metrics.min_images = 4
  path = save(tmp_path / "few.npz", draw(2, 5))
  metrics = fid.evaluate(config, path, real)["metrics"]
  assert np.isfinite(list(metrics.values())).all()
  assert metrics["fid5"] > 0


def test_blocks(config, samples, real, tmp_path):
  others = [save(tmp_path / f"{i}.npz", draw(i, 50)) for i in (5, 6)]
  report = fid.evaluate_blocks(config, [samples, *others], real)
  values = [block["metrics"]["fid50"] for block in report["blocks"]]
  assert len(set(values)) == 3
  assert report["min"]["fid50"] == min(values)
  np.testing.assert_allclose(report["mean"]["fid50"], np.mean(values))
  np.testing.assert_allclose(report["std"]["fid50"], np.std(values))
  others.append(save(tmp_path / "7.npz", draw(7, 40)))
  with pytest.raises(errors.UserError, match="comparable only at one number"):
    fid.evaluate_blocks(config, others, real)


@pytest.mark.parametrize(
  ("count", "suffix"),
  [(50_000, ""), (10_000, "10k"), (512, "512"), (49_999, "49999")],
)
def test_names_tell_the_number_of_samples(count, suffix):
  assert fid.suffix(count) == suffix


def test_a_run_is_scored_against_its_data_set(
  config, samples, tmp_path, monkeypatch
):
  images = draw(0, 70)
  source = sources.Source(images, np.zeros(70, np.int32), 10, "set-area4")
  monkeypatch.setattr(sources, "load", lambda spec, split: source)
  config.metrics.feature_network = "inception"
  evaluate.prepare(config, tmp_path)
  report = evaluate.evaluate(config, tmp_path, samples)
  assert report["provenance"]["reference"]["preprocessing"] == "set-area4"
  assert report["metrics"]["fid50"] > 0


@pytest.fixture
def data_set(monkeypatch):
  """Return {split: images} of a data set that is there until it is cleared."""
  sets = {"train": draw(0, 70), "heldout": draw(9, 60)}

  def load(spec, split):
    if split not in sets:
      raise errors.UserError("not there")
    labels = np.zeros(len(sets[split]), np.int32)
    return sources.Source(sets[split], labels, 10, f"set-{split}")

  monkeypatch.setattr(sources, "load", load)
  return sets


def test_held_out_images_are_scored_like_samples(config, tmp_path, data_set):
  config.metrics.feature_network = "inception"
  config.sampling.num_samples = 30
  evaluate.prepare(config, tmp_path)
  chosen = image_sets.draw(60, 30)
  assert len(set(chosen)) == 30
  path = save(tmp_path / "x.npz", data_set["heldout"][chosen])
  expected = evaluate.evaluate(config, tmp_path, path)
  data_set.clear()  # what was made is read
  real = evaluate.held_out(config, tmp_path)
  assert real["num_samples"] == 30
  assert real["metrics"] == pytest.approx(expected["metrics"], rel=1e-9)
  assert {"fid30", "is30", "precision30"} <= set(real["metrics"])
  assert real["about"]["images"] == "set-heldout"
  assert not list(tmp_path.rglob("*.part"))


def test_too_few_or_no_held_out_images_have_no_scores(
  config, tmp_path, data_set
):
  config.metrics.feature_network = "inception"
  data_set["heldout"] = draw(9, 19)
  assert evaluate.held_out(config, tmp_path) is None
  del data_set["heldout"]
  assert evaluate.held_out(config, tmp_path) is None
  assert not (tmp_path / "held_out").exists()


def test_processes_share_the_chunks(samples, tmp_path, monkeypatch):
  images = image_sets.open_images(samples)

  def collect_in(folder, processes):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    for process in range(processes):
      monkeypatch.setattr(jax, "process_index", lambda at=process: at)
      collect.collect(
        folder,
        _stand_in,
        _weights(""),
        images,
        kept=np.arange(50) % 3 == 0,
        chunk_size=8,
        batch_size=2,
      )
    return collect.assemble(folder, 50, 8)

  alone = collect_in(tmp_path / "alone", 1)
  monkeypatch.setattr(collect.shared, "check", lambda folder: None)
  monkeypatch.setattr(collect.distributed, "in_all", lambda work: work())
  together = collect_in(tmp_path / "together", 2)
  np.testing.assert_array_equal(together.rows, alone.rows)
  assert together.features.count == 50
  np.testing.assert_allclose(
    together.features.scatter, alone.features.scatter, rtol=1e-12, atol=1e-12
  )
