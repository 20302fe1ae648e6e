"""Samples: one compilation, image i from (seed, i), chunks that survive."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd import build
from cfgd import diffusion
from cfgd import identity
from cfgd.models import parametrization
from cfgd.runtime import checkpoint
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import preemption
from cfgd.sampling import draw as draw_lib
from cfgd.sampling import generate
from cfgd.sampling import sampler
from cfgd.sampling import store
from cfgd.sampling import trained as trained_lib
from cfgd.training import loop
from tests import conftest

SCHEDULE = diffusion.Schedule(-20.0, 20.0)


class Scaled:
  """A network of one number that counts how often it is traced."""

  def __init__(self):
    self.traces = 0

  condition, takes_w = "all", False

  def apply(self, variables, z, time, label):
    self.traces += 1
    shade = (label[:, None, None, None] + 1) / 11
    return (
      variables["params"]
      * jnp.tanh(z + time[:, None, None, None] / 1e3)
      * shade
    )


CHOICES = sampler.Choices(
  sampler="ancestral",
  guidance="cfg",
  w_schedule="constant",
  v_from="own",
  threshold="clip",
  rescale=False,
)
NUMBERS = {
  "w": 0.3,
  "v": 0.3,
  "classifier_w": 0.5,
  "rescale": 0.7,
  "quantile": 0.9,
  "score_scale": 1.0,
  "noise_scale": 1.0,
  "churn": 1.0,
  "churn_low": -7.8,
  "churn_high": 6.0,
  "interval_low": -np.inf,
  "interval_high": np.inf,
}


def make(network, guide=None, two_passes=True, **changes):
  return sampler.make_sampler(
    parametrization.Model(network, "uniform", SCHEDULE),
    guide and parametrization.Model(guide, "uniform", SCHEDULE),
    CHOICES._replace(**changes),
    shape=(2, 2, 1),
    null_label=10,
    two_passes=two_passes,
  )


def draw(run, index, *, seed=0, logsnrs=None, devices=4, **numbers):
  index = np.array(index, np.uint32)
  rows = -(-len(index) // devices) * devices
  padded = distributed.pad(index, rows)
  images, finite = run(
    (np.float32(0.5), np.float32(2.0)),
    *distributed.split((padded, (padded % 10).astype(np.int32)), devices),
    np.uint32(seed),
    jax.tree.map(np.float32, NUMBERS | numbers),
    SCHEDULE.grid(4) if logsnrs is None else logsnrs,
  )
  assert distributed.merge(finite).all()
  return distributed.merge(images)[: len(index)]


SAMPLERS = [
  name for name, row in diffusion.SAMPLERS.items() if not row.without_score
]


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_compilation_serves_every_w_number_seed_and_grid(name):
  network = Scaled()
  run = make(network, sampler=name)
  draw(run, range(8))
  first = network.traces
  order = diffusion.SAMPLERS[name].levels(4)
  ends = {"logsnr_low": -7.0, "logsnr_high": 9.0}
  logsnrs = diffusion.even_logsnrs(4, **ends)[order]
  for w, v, seed in ((0.0, 0.2, 1), (4.0, 1.0, 2), (-1.0, 0.0, 3)):
    numbers = {"v": v, "churn": 10 * v, "noise_scale": 1 + v}
    draw(run, range(8), w=w, seed=seed, logsnrs=logsnrs, **numbers)
  assert network.traces == first
  assert make(network, sampler=name) is run


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("two_passes", [True, False])
def test_image_i_is_a_function_of_seed_and_i(name, two_passes):
  run = make(Scaled(), sampler=name, two_passes=two_passes)
  whole = draw(run, range(12))
  np.testing.assert_array_equal(draw(run, [7]), whole[[7]])
  np.testing.assert_array_equal(draw(run, [11, 3, 0]), whole[[11, 3, 0]])
  assert (draw(run, range(12), seed=1) != whole).any()


def test_both_forms_of_guidance_give_the_same_images():
  one, two = (make(Scaled(), two_passes=flag) for flag in (False, True))
  np.testing.assert_array_equal(draw(one, range(8)), draw(two, range(8)))


def test_w_changes_the_images_and_zero_is_conditional():
  run = make(Scaled())
  assert (draw(run, range(8), w=2.0) != draw(run, range(8), w=0.0)).any()


def test_values_that_are_not_finite_are_reported():
  class Broken(Scaled):
    def apply(self, variables, z, time, label):
      bad = (label == 3)[:, None, None, None]
      return jnp.where(bad, jnp.nan, z)

  run = make(Broken())
  index = np.arange(8, dtype=np.uint32)
  _, finite = run(
    (np.float32(1), None),
    *distributed.split((index, index.astype(np.int32)), 4),
    np.uint32(0),
    jax.tree.map(np.float32, NUMBERS),
    SCHEDULE.grid(3),
  )
  np.testing.assert_array_equal(distributed.merge(finite), index != 3)


def test_store_is_filled_by_chunks(tmp_path):
  images = np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1)
  assert store.missing(tmp_path / "new", 10) == [(0, 10)]
  store.write(tmp_path, 4, images[4:8], np.arange(4, 8))
  assert store.missing(tmp_path, 10) == [(0, 4), (8, 10)]
  store.write(tmp_path, 8, images[8:], np.arange(8, 10))
  result = tmp_path / "samples_10.npz"
  with pytest.raises(errors.RunError, match="no chunk has images 0 to 4"):
    store.assemble(tmp_path, result, 10)
  store.write(tmp_path, 0, images[:4], np.arange(4))
  assert store.missing(tmp_path, 10) == []
  assert store.missing(tmp_path, 12) == [(10, 12)]
  read = store.assemble(tmp_path, result, 10)
  np.testing.assert_array_equal(read, images)
  np.testing.assert_array_equal(images_of(result)[0], images)
  np.testing.assert_array_equal(images_of(result)[1], np.arange(10))
  assert not list(tmp_path.glob(".tmp*"))


def test_chunks_may_overlap_and_end_behind_the_last_image(tmp_path):
  images = np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1)
  for start, stop in ((0, 3), (0, 5), (2, 4), (4, 10)):
    store.write(tmp_path, start, images[start:stop], np.arange(start, stop))
  assert store.complete(tmp_path) == [(0, 3), (3, 5), (5, 10)]
  for count in (4, 9, 10):
    result = tmp_path / f"samples_{count}.npz"
    read = store.assemble(tmp_path, result, count)
    np.testing.assert_array_equal(read, images[:count])
    np.testing.assert_array_equal(images_of(result)[1], np.arange(count))


def test_drawn_images_are_written_by_number_by_gap_and_by_time(
  tmp_path, monkeypatch
):
  def add(writer, *index):
    images = np.zeros((len(index), 2, 2, 1), np.uint8)
    writer.add(np.array(index), images, np.array(index))

  writer = store.Writer(tmp_path, 4)
  add(writer, 0, 1, 2)
  assert store.missing(tmp_path, 9) == [(0, 9)]
  add(writer, 3, 6, 7)
  assert store.missing(tmp_path, 9) == [(4, 6), (8, 9)]
  monkeypatch.setattr(store, "_SECONDS", 0.0)
  add(writer, 8)
  assert store.missing(tmp_path, 9) == [(4, 6)]
  writer.flush()
  assert len(list(tmp_path.iterdir())) == 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  config = conftest.make_tiny()
  workdir = tmp_path_factory.mktemp("trained")
  loop.train(config, workdir)
  return config, workdir


@pytest.fixture
def config(trained):
  return trained[0].copy_and_resolve_references()


def images_of(path):
  with np.load(path) as arrays:
    assert arrays.files == ["arr_0", "arr_1"]
    return arrays["arr_0"], arrays["arr_1"]


def test_generate_writes_what_evaluators_read(config, trained):
  path = generate.generate(config, trained[1])
  images, labels = images_of(path)
  assert images.shape == (22, 4, 4, 1)
  assert images.dtype == np.uint8
  np.testing.assert_array_equal(labels, np.arange(22) % 10)
  assert (path.parent / "grid.png").read_bytes()[1:4] == b"PNG"


def test_generate_resumes_by_chunk(config, trained, monkeypatch):
  config.sampling.w = 0.7
  path = generate.generate(config, trained[1])
  images, _ = images_of(path)
  path.unlink()
  last = max(path.parent.glob("chunk*"))
  start = int(last.name.split("_")[1])
  assert start > 0
  last.unlink()
  written = []
  write = store.write
  monkeypatch.setattr(
    store, "write", lambda *args: (written.append(args[1]), write(*args))
  )
  np.testing.assert_array_equal(
    images_of(generate.generate(config, trained[1]))[0], images
  )
  assert written == [start]
  generate.generate(config, trained[1])
  assert written == [start]


def test_a_damaged_chunk_is_named(config, trained):
  config.sampling.w = 0.9
  path = generate.generate(config, trained[1])
  path.unlink()
  chunk = min(path.parent.glob("chunk*"))
  chunk.write_bytes(chunk.read_bytes()[:300])
  with pytest.raises(errors.UserError, match=f"{chunk.name}: damaged .*delete"):
    generate.generate(config, trained[1])
  chunk.unlink()
  assert generate.generate(config, trained[1]) == path


def test_sigterm_ends_sampling_after_the_call(config, trained, monkeypatch):
  config.sampling.seed, config.sampling.batch_size = 3, 2
  handler = signal.getsignal(signal.SIGTERM)
  preemption.install()
  add = store.Writer.add

  def signalled(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    add(*args)

  with monkeypatch.context() as patched:
    patched.setattr(store.Writer, "add", signalled)
    words = "8 of 22 images are written"
    with pytest.raises(errors.Preempted, match=words):
      generate.generate(config, trained[1])
  signal.signal(signal.SIGTERM, handler)
  path = generate.generate(config, trained[1])
  names = {chunk.name for chunk in path.parent.glob("chunk*")}
  assert "chunk_0000000_0000008.npz" in names
  assert len(images_of(path)[0]) == 22


def test_batch_and_chunk_sizes_do_not_change_the_images(config, trained):
  config.sampling.w = 1.5
  path = generate.generate(config, trained[1])
  images, _ = images_of(path)
  for chunk in path.parent.glob("*.npz"):
    chunk.unlink()
  config.sampling.batch_size, config.sampling.chunk_size = 3, 7
  again = generate.generate(config, trained[1])
  assert again == path
  np.testing.assert_array_equal(images_of(again)[0], images)


def test_every_host_of_a_pod_draws():
  shares = generate.divide([(0, 50_000)], 64)
  assert {len(share) for share in shares} == {781, 782}
  np.testing.assert_array_equal(np.concatenate(shares), np.arange(50_000))
  shares = generate.divide([(3, 5), (8, 9)], 2)
  assert [list(share) for share in shares] == [[3, 4], [8]]
  assert [len(share) for share in generate.divide([(0, 2)], 3)] == [1, 1, 0]


def test_labels_can_be_chosen(config, trained):
  config.sampling.labels = (7, 2)
  _, labels = images_of(generate.generate(config, trained[1]))
  np.testing.assert_array_equal(labels, np.tile([7, 2], 11))


def test_other_weights_and_steps_are_other_samples(config, trained):
  paths = {generate.generate(config, trained[1])}
  config.sampling.weights = "raw"
  paths.add(generate.generate(config, trained[1]))
  config.sampling.checkpoint_step = 1
  paths.add(generate.generate(config, trained[1]))
  assert len(paths) == 3


@pytest.mark.slow
def test_weights_sample_in_another_precision(config, trained):
  path = generate.generate(config, trained[1])
  config.model.dtype = "bfloat16"
  half = generate.generate(config, trained[1])
  assert half != path
  assert images_of(half)[0].shape == images_of(path)[0].shape


def test_nothing_is_written_on_bad_input(config, trained, tmp_path):
  with pytest.raises(errors.UserError, match="no checkpoint"):
    generate.generate(config, tmp_path)
  config.sampling.w = -2.0
  with pytest.raises(errors.UserError, match=r"sampling\.w"):
    generate.generate(config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_broken_weights_end_the_run_and_leave_no_samples(
  config, trained, monkeypatch
):
  def read(*args):
    return jax.tree.map(lambda leaf: leaf * np.nan, original(*args))

  original = checkpoint.read_params
  monkeypatch.setattr(checkpoint, "read_params", read)
  config.sampling.seed = 99
  with pytest.raises(errors.NonFiniteError, match=r"first: image 0.*w=0.3"):
    generate.generate(config, trained[1])
  found = trained_lib.find(config, trained[1])
  folder = identity.claim_samples(*found, write=False)
  assert [path.name for path in folder.iterdir()] == ["settings.json"]


def test_fields_without_effect_name_no_folder(config, trained, monkeypatch):
  config.sampling.sampler = "ddim"
  path = generate.generate(config, trained[1])
  lines = []
  monkeypatch.setattr(
    identity.logging,
    "warning",
    lambda text, *arguments: lines.append(text % arguments),
  )
  monkeypatch.setattr(trained_lib, "sampler", None)
  config.sampling.v, config.sampling.quantile = 0.7, 0.9
  assert generate.generate(config, trained[1]) == path
  assert len(lines) == 1
  assert "sampling.v=0.7 has no effect with sampling.sampler='ddim'" in lines[0]
  recorded = json.loads((path.parent / "settings.json").read_text())
  assert not {"sampling.v", "sampling.quantile"} & set(recorded)


def test_no_guidance_and_guidance_of_no_strength_share(config, trained):
  config.sampling.w = 0.0
  path = generate.generate(config, trained[1])
  images, _ = images_of(path)
  shutil.rmtree(path.parent)
  config.sampling.guidance = "none"
  assert generate.generate(config, trained[1]) == path
  np.testing.assert_array_equal(images_of(path)[0], images)


def test_samples_of_other_defaults_are_refused(trained, tmp_path, set_defaults):
  workdir = tmp_path / "run"
  shutil.copytree(trained[1], workdir)
  config = conftest.make_tiny()
  generate.generate(config, workdir)
  set_defaults(sampling_v=0.2)
  with pytest.raises(errors.UserError, match=r"v: 0\.3 there, 0\.2 now"):
    generate.generate(conftest.make_tiny(), workdir)


def test_a_run_goes_on_when_fields_are_added(trained, tmp_path, set_defaults):
  workdir = tmp_path / "run"
  shutil.copytree(trained[1], workdir)
  path = generate.generate(conftest.make_tiny(), workdir)
  set_defaults(data_tint=0.0, model_gate=(1,), train_push="", sampling_spice=1)
  config = conftest.make_tiny()
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(trained_lib, "sampler", None)
    assert generate.generate(config, workdir) == path
  config.train.steps = 3
  loop.train(config, workdir)
  metas = {found.step: found.meta for found in checkpoint.inspect(workdir)}
  assert metas[3] == metas[2]
  assert generate.generate(config, workdir) != path  # of another step

  config.model.gate = (2,)
  with pytest.raises(errors.UserError, match=r"gate: \[1\] there by default"):
    generate.generate(config, workdir)


@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_device_that_computes_wrongly_writes_no_sample(
  config, trained, monkeypatch, place
):
  """One place of a call is spoilt, as once by a compiler on two devices."""
  sound = build.sampler(config)
  per_device = config.sampling.batch_size

  def spoilt(*arguments):
    images, finite = sound.run(*arguments)
    images = np.array(images)
    images[place // per_device, place % per_device, 0, 0] ^= 128
    return images, finite

  def build_spoilt(config, guide):
    return build_sound(config, guide)._replace(run=spoilt)

  build_sound = build.sampler
  config.sampling.seed = 77 + place  # samples that nobody has made
  before = set(trained[1].glob("samples/*/chunk_*"))
  with monkeypatch.context() as patched:
    patched.setattr(build, "sampler", build_spoilt)
    with pytest.raises(errors.RunError, match=r"1 of 8 copies.*batch_size=2"):
      generate.generate(config, trained[1])
  assert set(trained[1].glob("samples/*/chunk_*")) == before
  generate.generate(config, trained[1])
  assert set(trained[1].glob("samples/*/chunk_*")) > before


def test_calls_that_are_not_full_are_checked_too():
  def run(params, index, *_):
    places = np.where(np.arange(8) == 6, 200, 10).astype(np.uint8)
    return places.reshape(4, 2, 1, 1, 1), np.ones((4, 2), bool)

  draw = draw_lib.Draw(run, 2, 0, NUMBERS, SCHEDULE.grid(3))
  label = np.zeros(8, np.int32)
  draw((None, None), np.arange(8), label)  # eight images, none of them twice
  with pytest.raises(errors.RunError, match="of 4 copies"):
    draw((None, None), np.arange(5), label[:5])
