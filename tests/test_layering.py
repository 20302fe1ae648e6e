"""Imports point down: docs/design.md's table, read from the source."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# What each folder, or module beside the folders, may import of the project,
# from the bottom up. Modules of one folder may import each other.
BELOW = {
  "runtime": set(),
  "diffusion": set(),
  "guidance": {"diffusion"},
  "data": {"runtime"},
  "models": {"runtime", "diffusion", "convert"},
  "convert": {"runtime", "models", "diffusion"},
  "config": {"runtime", "data"},
  "settings": {"runtime", "config"},
  "validation": {"runtime", "config", "diffusion", "settings", "data"},
  "networks": {"config", "models"},
}
# Each may import all before it; a fork for another paper replaces the last.
for _name in ("sampling", "training", "metrics", "sweep", "report", "paper"):
  BELOW[_name] = set(BELOW)
# Modules that take (config, workdir) and may need what training needs.
FRONTS = {
  *("training.loop", "training.tasks", "training.importer"),
  *("sampling.generate", "metrics.evaluate", "metrics.fid", "metrics.own"),
  *("metrics.feature_training", "data.imagenet"),
}
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


def folder_of(name):
  return name.split(".")[0]


def ours_in(path):
  """Return the folders and modules of the project that a file imports."""
  return {
    module.removeprefix("cfgd.").split(".")[0]
    for module in imports(path)
    if module.startswith("cfgd.")
  }


def test_every_module_has_its_place():
  assert {folder_of(name) for name, _ in modules()} == set(BELOW)


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_imports_point_down(name, path):
  folder = folder_of(name)
  assert ours_in(path) <= BELOW[folder] | {folder}
  outside = {
    module
    for module in imports(path)
    if module.split(".")[0] in {"configs", "experiments"}
  }
  # What an old run did not record is at its default, which base.py alone knows.
  assert outside == ({"configs.base"} if name == "config" else set())


@pytest.mark.xfail(strict=True, reason="models and convert need each other")
def test_folders_have_no_cycles():
  graph = {}
  for name, path in modules():
    folder = folder_of(name)
    graph.setdefault(folder, set()).update(ours_in(path) - {folder})
  while free := {k for k, below in graph.items() if not below & set(graph)}:
    graph = {k: below for k, below in graph.items() if k not in free}
  assert not graph, graph


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_below_the_fronts_nothing_is_heavy(name, path):
  if name not in FRONTS and folder_of(name) not in {"sweep", "report", "paper"}:
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
