"""Imports point down: docs/design.md's table, read from the source."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# What each module may import from the project. Anything not listed is
# forbidden; errors and files may be imported by all.
EVERYONE = {"errors", "files"}
ALLOWED = {
  "errors": set(),
  "files": set(),
  # L0
  "manifest": set(),
  "preemption": set(),
  "xla": set(),
  "peers": set(),
  "pixels": set(),
  "diffusion": set(),
  "distributed": set(),
  "config": set(),
  "models.feature_net": set(),
  "data.images": set(),
  "data.crops": {"data.images"},
  "data.embedded": set(),
  "sampling.store": set(),
  "metrics.scores": set(),
  "metrics.inception": set(),
  "metrics.neighbours": set(),
  "sweep.grid": set(),
  "sweep.paper": set(),
  "sweep.verdicts": set(),
  "sweep.seeds": set(),
  # L1
  "settings": {"config"},
  "validation": {"config", "data.images", "diffusion", "settings"},
  "guidance": {"diffusion"},
  "checkpoint": {"distributed", "manifest"},
  "lease": {"distributed"},
  "watchdog": {"peers"},
  "models.convolution": set(),
  "models.blocks": {"models.convolution", "xla"},
  "models.unet": {"models.blocks"},
  "models.classifier": {"models.blocks", "models.unet"},
  "data.contents": {"data.images"},
  "data.originals": {"data.contents", "data.images"},
  "data.imagenet_archives": {"data.originals"},
  "data.tfds_sets": {"data.images", "data.originals"},
  "data.prepared": set(),
  "data.catalog": {
    *("data.images", "data.imagenet_archives", "data.originals"),
    *("data.prepared", "data.tfds_sets"),
  },
  "data.prepare": {
    *("data.catalog", "data.images", "data.prepared", "distributed"),
  },
  "data.sources": {
    *("data.images", "data.crops", "data.embedded", "data.catalog"),
  },
  "data.pipeline": {
    *("data.sources", "data.crops", "data.images", "distributed"),
  },
  "training.state": {"xla"},
  "sweep.plots": {"sweep.paper"},
  "sweep.claims": {"sweep.verdicts"},
  "sweep.report": {
    *("sweep.claims", "sweep.paper", "sweep.plots", "sweep.seeds"),
    "sweep.verdicts",
  },
  "convert.guided_diffusion": {"diffusion"},
  "metrics.contrast": {"sampling.store"},
  "metrics.image_sets": {"data.images", "sampling.store"},
  "metrics.manifold": {"metrics.scores"},
  "metrics.splits": {"metrics.scores"},
  "metrics.references": {
    *("metrics.image_sets", "metrics.inception", "metrics.scores"),
  },
  # L2
  "convert.inception": {"convert.guided_diffusion", "metrics.inception"},
  "toy": {"diffusion"},
  "parametrization": {"diffusion", "convert.guided_diffusion"},
  "networks": {"config", "models.classifier", "models.unet"},
  "training.losses": {"diffusion", "parametrization", "pixels"},
  "training.steps": {"training.state"},
  "training.progress": {"training.steps"},
  "sampling.sampler": {"diffusion", "guidance", "parametrization", "pixels"},
  "metrics.extract": {"distributed", "pixels"},
  "metrics.collect": {
    *("distributed", "metrics.extract", "metrics.image_sets"),
    "metrics.scores",
  },
  # L3: fronts that meet through files only, and a builder for users of TFDS.
  "data.imagenet": {
    *("data.imagenet_archives", "data.images", "data.prepare"),
    "data.prepared",
  },
  "convert.importer": {
    "validation",
    *("config", "checkpoint", "convert.guided_diffusion", "networks"),
    "training.state",
  },
  "sampling.configured": {
    *("config", "diffusion", "distributed", "networks", "sampling.sampler"),
  },
  "training.tasks": {
    *("config", "distributed", "data.images", "data.sources"),
    *("sampling.configured", "training.losses", "training.steps"),
  },
  "training.loop": {
    "validation",
    *("config", "checkpoint", "distributed", "networks"),
    *("data.pipeline", "data.prepare", "data.sources"),
    "convert.guided_diffusion",
    *("lease", "preemption", "watchdog"),
    *("training.progress", "training.state"),
    *("training.steps", "training.tasks"),
  },
  "sampling.second": {"config", "checkpoint", "networks"},
  "sampling.generate": {
    *("settings", "validation"),
    "sampling.second",
    *("config", "checkpoint", "distributed", "preemption"),
    *("data.images", "networks", "sampling.configured", "sampling.store"),
  },
  "metrics.feature_training": {
    *("config", "distributed", "data.pipeline", "metrics.extract"),
    *("models.feature_net", "pixels", "training.state", "training.steps"),
  },
  "metrics.fid": {
    "validation",
    *("config", "distributed", "convert.inception", "data.sources"),
    *("metrics.collect", "metrics.image_sets", "metrics.inception"),
    *("metrics.manifold", "metrics.references", "metrics.scores"),
    "metrics.splits",
  },
  "metrics.own": {
    "validation",
    *("config", "distributed", "data.images", "data.prepare", "data.sources"),
    *("metrics.extract", "metrics.feature_training", "metrics.image_sets"),
    *("metrics.contrast", "metrics.manifold", "metrics.neighbours"),
    *("metrics.scores", "metrics.splits"),
  },
  "metrics.evaluate": {
    *("config", "data.sources", "metrics.fid", "metrics.own"),
  },
  # L4
  "sweep.planner": {"sweep.grid", "config", "diffusion", "networks"},
  "sweep.runner": {
    *("settings", "validation"),
    *("config", "distributed", "sweep.grid", "sweep.paper", "sweep.planner"),
    *("data.sources", "sweep.report"),
    *("lease", "preemption"),
    *("training.loop", "sampling.generate", "metrics.evaluate"),
  },
  "sweep.figures": {
    "validation",
    *("config", "data.images", "distributed", "sampling.generate"),
    "sweep.plots",
  },
}
LAST_LIGHT_LEVEL = "metrics.collect"  # of L2
HEAVY = {"tensorflow", "torch", "tensorflow_datasets", "clu"}


def imports(path, lazy=True):
  """Return the modules that a file imports, as dotted names.

  Args:
    path: of the file.
    lazy: those inside functions too.
  """
  found = set()
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree) if lazy else tree.body:
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}: relative import"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def modules():
  for path in sorted((ROOT / "cfgd").rglob("*.py")):
    if path.name != "__init__.py":
      name = ".".join(path.relative_to(ROOT / "cfgd").with_suffix("").parts)
      yield name, path


def test_every_module_has_its_place():
  assert {name for name, _ in modules()} == set(ALLOWED)


def test_the_table_itself_points_down():
  order = list(ALLOWED)
  for name, below in ALLOWED.items():
    for other in below:
      assert order.index(other) < order.index(name), (name, other)


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_imports_point_down(name, path):
  ours = {
    module.removeprefix("cfgd.")
    for module in imports(path)
    if module.startswith("cfgd.")
  }
  allowed = ALLOWED[name] | (EVERYONE if name not in EVERYONE else set())
  assert ours <= allowed, f"{name} must not import {sorted(ours - allowed)}"
  outside = {
    module
    for module in imports(path)
    if module.split(".")[0] in {"configs", "experiments"}
  }
  # What an old run did not record is at its default, which base.py alone knows.
  assert outside == ({"configs.base"} if name == "config" else set())


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_below_the_fronts_nothing_is_heavy(name, path):
  order = list(ALLOWED)
  if order.index(name) <= order.index(LAST_LIGHT_LEVEL):
    outside = {module.split(".")[0] for module in imports(path, lazy=False)}
    assert not outside & HEAVY


def test_pmap_stays_in_its_three_rooms():
  users = {name for name, path in modules() if "jax.pmap" in path.read_text()}
  assert users == {"training.steps", "sampling.sampler", "metrics.extract"}


def test_flags_live_in_experiments_alone():
  for name, path in modules():
    assert "absl.flags" not in imports(path), name


def test_configs_import_only_configs():
  for path in (ROOT / "configs").glob("*.py"):
    outside = {module.split(".")[0] for module in imports(path)}
    assert outside <= {"configs", "ml_collections"}, path


def test_entry_points_are_short():
  for path in (ROOT / "experiments").glob("*.py"):
    if path.name != "launcher.py":
      assert len(path.read_text().splitlines()) <= 60, path
