"""Which folder may import which, read from the source."""

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
  "models": {"runtime", "diffusion"},
  "convert": {"runtime", "diffusion", "models"},
  "methods": {"diffusion", "guidance", "models"},
  "identity": {"runtime", "diffusion", "methods"},
  "validation": {"runtime", "diffusion", "methods", "identity", "data"},
}
_LIBRARY = set(BELOW) - {"identity", "validation"}
# Arguments, not configs: all but the FRONTS of these folders.
BELOW["sampling"] = BELOW["training"] = _LIBRARY
BELOW["metrics"] = BELOW["build"] = _LIBRARY | {"sampling", "training"}
_FRONT = set(BELOW)
# Each may import all before it; a fork for another paper replaces the last.
for _name in ("sweep", "report", "paper"):
  BELOW[_name] = set(BELOW)
# Modules that take configs, beside libraries in the same folder that do not.
FRONTS = {
  *("training.loop", "training.tasks", "training.importer"),
  "training.teacher",
  *("sampling.generate", "sampling.trained"),
  *("metrics.evaluate", "metrics.fid", "metrics.own"),
  *("metrics.feature_training",),
}
# Users of TensorFlow or clu.
_HEAVY_FRONTS = FRONTS | {"data.imagenet", "training.events"}
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
  """Return the modules of the project that a file imports."""
  return {
    module.removeprefix("cfgd.")
    for module in imports(path)
    if module.startswith("cfgd.")
  }


def test_every_module_has_its_place():
  assert {folder_of(name) for name, _ in modules()} == set(BELOW)
  assert {name for name, _ in modules()} >= FRONTS


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_imports_point_down(name, path):
  folder = folder_of(name)
  below = _FRONT if name in FRONTS else BELOW[folder] | {folder}
  assert set(map(folder_of, ours_in(path))) <= below
  if name not in FRONTS and folder in {"sampling", "training", "metrics"}:
    assert not ours_in(path) & FRONTS
  outside = {
    module
    for module in imports(path)
    if module.split(".")[0] in {"configs", "experiments"}
  }
  # base.py alone knows the defaults of what an old run did not record.
  assert outside == ({"configs.base"} if name == "identity" else set())


def assert_no_cycle(node_of):
  graph = {}
  for name, path in modules():
    node = node_of(name)
    below = {node_of(other) for other in ours_in(path)} - {node, None}
    if node:
      graph.setdefault(node, set()).update(below)
  while free := {k for k, below in graph.items() if not below & set(graph)}:
    graph = {k: below for k, below in graph.items() if k not in free}
  assert not graph, graph


def test_folders_have_no_cycles():
  folders = {path.parent.name for _, path in modules()} - {"cfgd"}
  assert_no_cycle(lambda name: next(iter({folder_of(name)} & folders), None))


def test_nothing_has_cycles_where_fronts_stand_apart():
  assert_no_cycle(lambda name: name if name in FRONTS else folder_of(name))


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_below_the_fronts_nothing_is_heavy(name, path):
  if name not in _HEAVY_FRONTS and folder_of(name) not in {
    "sweep",
    "report",
    "paper",
  }:
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
