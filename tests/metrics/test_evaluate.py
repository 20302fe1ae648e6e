"""A data set's own feature network, and scores of files of samples by it."""

import json

import numpy as np
import PIL.Image
import pytest

from cfgd.data import sources
from cfgd.data import spec
from cfgd.metrics import evaluate
from cfgd.metrics import feature_training
from cfgd.metrics import own
from cfgd.runtime import errors
from tests import conftest


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def reference(workdir):
  return own.reference(conftest.make_tiny(), workdir)


def save(path, images):
  np.savez(path, images, np.zeros(len(images), np.int64))
  return path


def test_network_is_trained_once(tiny, workdir, reference):
  (path,) = (workdir / "feature_net").glob("*/feature_net.npz")
  before = path.stat().st_mtime_ns
  own._reference.cache_clear()
  again = own.reference(tiny, workdir)
  assert path.stat().st_mtime_ns == before
  assert again.name == reference.name
  assert again.about == reference.about
  about = json.loads((path.parent / "feature_net.json").read_text())
  assert about["preprocessing"] == "mnist5k-crop24-area4"
  _, probabilities = reference.extract(reference.held_out)
  labels = sources.load(spec.Spec("embedded", 4, crop=24), "heldout").labels
  accuracy = np.mean(probabilities.argmax(axis=1) == labels)
  assert about["heldout_accuracy"] == pytest.approx(accuracy)
  assert (
    reference.about["feature_network_accuracy"] == about["heldout_accuracy"]
  )


def test_networks_of_other_settings_lie_beside_each_other(
  tiny, workdir, reference
):
  # As made before the folders had names: weights that fit no network of today.
  old = workdir / "feature_net" / "feature_net.npz"
  old.write_bytes(b"old")
  tiny.metrics.feature_net.steps = 2
  other = own.reference(tiny, workdir)
  assert other.name != reference.name
  assert len(list(old.parent.glob("*/feature_net.npz"))) == 2
  tiny.metrics.feature_dir = str(old.parent)
  assert own.reference(tiny, "elsewhere").name == other.name
  assert old.read_bytes() == b"old"


def test_every_feature_is_alive(reference):
  features, _ = reference.extract(reference.held_out)
  spread = features.std(axis=0)
  assert (spread > 0.01 * spread.max()).all()
  assert reference.about["dead_features"] == 0
  assert reference.about["num_features"] == 8
  # Of which the count knows: one constant, one that hardly varies.
  features[:, 0] = 3.0
  features[:, 5] *= 1e-4
  assert feature_training.count_dead(features) == 2


def test_features_do_not_depend_on_batches(reference):
  images = reference.train[:37]
  features, probabilities = reference.extract(images, batch_size=2)
  assert features.shape == (37, 8)
  np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
  whole, _ = reference.extract(images, batch_size=10)
  np.testing.assert_allclose(features, whole, atol=1e-5)


def test_the_training_images_are_at_distance_zero(tiny, workdir, tmp_path):
  train = sources.load(spec.Spec("embedded", 4, crop=24), "train")
  report = evaluate.evaluate(
    tiny, workdir, save(tmp_path / "train.npz", train.images)
  )
  metrics = report["metrics"]
  assert abs(metrics["fd_embedded"]) < 1e-6
  assert metrics["fd_embedded_heldout"] > 1e-4
  assert metrics["precision"] == metrics["recall"] == 1
  assert metrics["copied"] > 0.9  # all, but some held-out ones are the same
  assert report["num_samples"] == 4000
  assert report["provenance"]["feature_network"].startswith("embedded-")


def test_noise_is_far_and_its_metrics_are_kept(tiny, workdir, tmp_path):
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (50, 4, 4, 1)).astype(np.uint8)
  path = save(tmp_path / "noise.npz", noise)
  report = evaluate.evaluate(tiny, workdir, path)
  assert report["metrics"]["fd_embedded"] > 0.01
  with PIL.Image.open(tmp_path / "noise.neighbours.png") as picture:
    assert picture.size == (10 * 5 - 1, 3 * 5 - 1)
    shown = np.asarray(picture)[:4, :4, 0]
  np.testing.assert_array_equal(shown, noise[0, ..., 0])
  written = tmp_path / "noise.metrics.json"
  assert json.loads(written.read_text()) == report
  before = written.stat().st_mtime_ns
  assert evaluate.evaluate(tiny, workdir, path) == report
  assert written.stat().st_mtime_ns == before
  # Other samples under the same name are scored anew.
  save(path, noise[::-1] // 2)
  assert evaluate.evaluate(tiny, workdir, path) != report


@pytest.mark.parametrize(
  ("images", "words"),
  [
    (np.zeros((30, 4, 4, 1), np.float32), "float32"),
    (np.zeros((30, 4, 4, 3), np.uint8), r"\[30, 4, 4, 3\]"),
    (np.zeros((30, 8, 8, 1), np.uint8), r"\[30, 8, 8, 1\]"),
    (np.zeros((1, 4, 4, 1), np.uint8), r"num_splits=2.*only 1 images"),
    (np.zeros((3, 4, 4, 1), np.uint8), r"neighbours=3.*only 3 images"),
  ],
)
def test_other_arrays_are_refused(tiny, workdir, tmp_path, images, words):
  path = save(tmp_path / "bad.npz", images)
  with pytest.raises(errors.UserError, match=words):
    evaluate.evaluate(tiny, workdir, path)
  assert list(tmp_path.iterdir()) == [path]


def test_broken_and_missing_files_are_refused(tiny, workdir, tmp_path):
  with pytest.raises(errors.UserError, match="no such file"):
    evaluate.evaluate(tiny, workdir, tmp_path / "none.npz")
  whole = save(tmp_path / "whole.npz", np.zeros((30, 4, 4, 1), np.uint8))
  (tmp_path / "half.npz").write_bytes(whole.read_bytes()[:300])
  np.savez(tmp_path / "named.npz", images=np.zeros(3))
  for name in ("half", "named"):
    with pytest.raises(errors.UserError, match=r"not an \.npz with images"):
      evaluate.evaluate(tiny, workdir, tmp_path / f"{name}.npz")


@pytest.mark.parametrize("name", ["embedded", "own:", "own:A b", "Inception"])
def test_unknown_networks_are_refused(tiny, workdir, tmp_path, name):
  tiny.metrics.feature_network = name
  path = save(tmp_path / "x.npz", np.zeros((30, 4, 4, 1), np.uint8))
  with pytest.raises(errors.UserError, match=r"feature_network=.*own:NAME"):
    evaluate.evaluate(tiny, workdir, path)


def test_metrics_are_called_after_the_network(tiny, workdir, tmp_path):
  tiny.metrics.feature_network = "own:mine"
  images = np.random.default_rng(1).integers(0, 256, (30, 4, 4, 1), np.uint8)
  report = evaluate.evaluate(tiny, workdir, save(tmp_path / "x.npz", images))
  assert {"fd_mine", "fd_mine_heldout", "is_mine"} < set(report["metrics"])
  assert report["provenance"]["feature_network"].startswith("mine-")


def test_a_part_of_the_training_images_is_enough(tiny, workdir, tmp_path):
  tiny.metrics.reference_features = 500
  reference = own.reference(tiny, workdir)
  assert len(reference.rows) == 500


def test_held_out_images_are_scored_like_samples(tiny, tmp_path, workdir):
  tiny.metrics.feature_dir = str(workdir / "feature_net")
  tiny.sampling.num_samples = 2000  # more than there are
  real = evaluate.held_out(tiny, tmp_path)
  reference = own.reference(tiny, tmp_path)
  images = reference.held_out[:]
  assert real["num_samples"] == len(images) == 1000
  as_samples = evaluate.evaluate(
    tiny, workdir, save(tmp_path / "real.npz", images)
  )["metrics"]
  del as_samples["fd_embedded_matched"]  # of samples, which have labels
  for name in ("copied", "fd_embedded_heldout"):  # with the images themselves
    del as_samples[name]
  assert real["metrics"] == pytest.approx(as_samples, rel=1e-9)
  about = real["about"]
  assert about.items() >= reference.about.items()
  assert about["num_splits"] == 2


def test_as_many_held_out_images_as_samples(tiny, tmp_path, workdir):
  tiny.metrics.feature_dir = str(workdir / "feature_net")
  tiny.sampling.num_samples = 200
  real = evaluate.held_out(tiny, tmp_path)
  assert real["num_samples"] == 200
  tiny.sampling.num_samples = 3  # fewer than neighbours need
  assert evaluate.held_out(tiny, tmp_path) is None


def test_held_out_scores_are_kept(tiny, tmp_path, workdir, monkeypatch):
  tiny.metrics.feature_dir = str(workdir / "feature_net")
  evaluate.prepare(tiny, tmp_path)
  (path,) = (tmp_path / "held_out").iterdir()
  # Another process than the one that made them reads them, and needs no data.
  monkeypatch.setattr(own, "reference", None)
  real = evaluate.held_out(tiny, tmp_path)
  assert real == json.loads(path.read_text())
  # In several processes one must not begin what needs all.
  path.unlink()
  monkeypatch.setattr(evaluate.jax, "process_count", lambda: 2)
  assert evaluate.held_out(tiny, tmp_path) is None


def test_held_out_scores_of_another_network_are_made_anew(
  tiny, tmp_path, workdir
):
  tiny.metrics.feature_dir = str(workdir / "feature_net")
  evaluate.prepare(tiny, tmp_path)
  (path,) = (tmp_path / "held_out").iterdir()
  right = json.loads(path.read_text())
  wrong = right | {"metrics": {}}
  path.write_text(json.dumps(wrong))
  evaluate.prepare(tiny, tmp_path)
  assert json.loads(path.read_text()) == wrong  # it says that it fits
  wrong["about"] = right["about"] | {"feature_network": "embedded-00000000"}
  path.write_text(json.dumps(wrong))
  evaluate.prepare(tiny, tmp_path)
  assert json.loads(path.read_text()) == right
