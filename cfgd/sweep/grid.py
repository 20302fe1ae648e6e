"""The cells of a sweep, and the plan of what each of them needs."""

import dataclasses
import itertools
from typing import Any
from typing import NamedTuple

from etils import epath
import jax
import ml_collections

from cfgd import identity
from cfgd import methods
from cfgd import validation
from cfgd.runtime import errors

AXES = ("p_uncond", "T", "w")
# Fields of `metrics` that affect no number: paths, and how images are batched.
_NO_EFFECT = (
  *("feature_dir", "cache_dir", "inception"),
  *("batch_size", "inception_batch_size", "chunk_size"),
)
# Prefixes of the settings of the other models that the sweep trains.
_CLASSIFIER, _TEACHER = "classifier.", "teacher."


class Cell(NamedTuple):
  """One point of a sweep.

  Attributes:
    p_uncond: label-drop probability of the model.
    T: network evaluations per branch.
    w: the paper's guidance strength.
    fields: (name, value) of other fields of `sampling` that the cell changes.
    seed: of training and sampling; None for the config's own.
  """

  p_uncond: float
  T: int
  w: float
  fields: tuple[tuple[str, Any], ...] = ()
  seed: int | None = None

  @property
  def id(self):
    """Name of the cell, used in folder names."""
    return self.point + self.suffix

  @property
  def suffix(self):
    """What the seed adds to folder names."""
    return "" if self.seed is None else f"_seed{self.seed}"

  @property
  def point(self):
    """Name shared by the cells that differ only in their seed."""
    own = "".join(
      f"_{identity.recorded_name(name)}-{_text(value)}"
      for name, value in self.fields
    )
    return f"p{self.p_uncond:g}_T{self.T}_w{self.w:g}{own}"

  @property
  def variant(self):
    """The other fields as text for readers; '' if there are none."""
    return ", ".join(
      _text(value) if name == "guidance" else f"{name} {_text(value)}"
      for name, value in self.fields
    )


def _text(value):
  if isinstance(value, tuple):
    return ",".join(map(_text, value))
  return f"{value:g}" if isinstance(value, float) else str(value)


def cells(grids, sampling, seeds=()):
  """Return the cells of a union of products, each once.

  They are ordered by seed, p_uncond, T, other fields and w: one training per
  seed and p_uncond, one compilation per T and kind of sampler.

  Args:
    grids: name -> {"p_uncond", "T", "w", and any field of `sampling`}, each a
      sequence of values.
    sampling: values of the fields that a grid does not name.
    seeds: every cell runs with each of them; () for the config's own.
  """
  points = set()
  for axes in grids.values():
    # In the order of earlier folder names.
    named = sorted(axes, key=identity.recorded_name)
    others = [name for name in named if name not in AXES]
    names = (*AXES, *others)
    for p, t, w, *values in itertools.product(*(axes[name] for name in names)):
      fields = tuple(
        (name, value)
        for name, value in zip(others, values, strict=True)
        if value != sampling[name]
      )
      points.add(Cell(float(p), int(t), float(w), fields))
  return [
    point._replace(seed=seed)
    for seed in seeds or (None,)
    for point in sorted(points, key=order)
  ]


def order(cell):
  """Return the sort key of the cells of one seed, see `cells`."""
  fields = cell.fields
  return cell.p_uncond, cell.T, len(fields), repr(fields), cell.w


def cell_config(config, *, p_uncond, seed=None, **sampling):
  """Return a copy of a sweep's config at one point.

  Args:
    config: ConfigDict of the sweep.
    p_uncond: of the model.
    seed: of training and sampling; None keeps the config's own.
    **sampling: values of fields of `sampling`.
  """
  config = config.copy_and_resolve_references()
  config.diffusion.p_uncond = p_uncond
  if seed is not None:
    config.seed = config.sampling.seed = seed
  config.sampling.update(sampling)
  return config


def _changed(config, name):
  """Return a copy of a sweep's config with the fields of one of its sections.

  Args:
    config: ConfigDict of the sweep.
    name: "classifier" or "student".
  """
  config = config.copy_and_resolve_references()
  changes = identity.flatten(config.sweep[name].to_dict())
  for field, value in changes.items():
    if field not in identity.defaults():
      advice = identity.RENAMED.get(field, "see configs/base.py")
      raise errors.UserError(
        f"sweep.{name}.{field}={value!r}: no such field; {advice}"
      )
  config.update_from_flattened_dict(changes)
  return config


def student_config(config):
  """Return the config of a sweep's students, None if it has none."""
  if not config.sweep.student:
    return None
  config = _changed(config, "student")
  config.task = "guided_student"
  config.diffusion.p_uncond = 0.0
  return config


def classifier_config(config):
  """Return the config of a sweep's own classifier, None if it has none."""
  if not config.sweep.classifier:
    return None
  config = _changed(config, "classifier")
  # It makes no samples, and what the cells set may need guidance.
  config.sampling.update(
    {"guidance": "none", "w": 0.0, "sampler": "ancestral"}
    | {"rescale": 0.0, "churn": 0.0}
  )
  return config


@dataclasses.dataclass(frozen=True)
class Planned:
  """A cell with all that its run needs.

  Attributes:
    config: the sweep's, with the values of the cell.
    run_dir: folder of the model's run.
    folder: of the results; named by a digest of `settings`, so that changed
      settings make new cells in the same workdir.
    settings: all that the numbers depend on, by dotted field.
    guide_config: of the classifier that the sweep trains to guide this cell;
      None if there is none.
    guide_dir: folder of its run.
    teacher: Training of the model whose student this cell's is, or None.
  """

  cell: Cell
  config: ml_collections.ConfigDict
  run_dir: epath.Path
  folder: epath.Path
  settings: dict[str, Any]
  guide_config: ml_collections.ConfigDict | None = None
  guide_dir: epath.Path | None = None
  teacher: "Training | None" = None

  @property
  def trainings(self):
    """The models that the cell needs, in the order of their training."""
    found = [] if self.teacher is None else [self.teacher]
    found.append(Training(self.config, self.run_dir, self.teacher))
    if self.guide_config is not None:
      found.append(Training(self.guide_config, self.guide_dir))
    return found

  def claim(self, *, write):
    """Check or record the settings, see `identity.claim_settings`."""
    path = self.folder / "settings.json"
    identity.claim_settings(path, self.settings, _defaults(), write=write)


def plan(config, workdir):
  """Plan a sweep: check every cell, and decide its config and its folders.

  Returns:
    List of Planned in the order of `cells`.

  Raises:
    errors.UserError: a bad grid, cell or classifier.
  """
  validation.validate_grids(config)
  sweep = config.sweep
  planned = [
    _plan_cell(config, epath.Path(workdir), cell)
    for cell in cells(sweep.grids, config.sampling, tuple(sweep.seeds))
  ]
  classifier, student = classifier_config(config), student_config(config)
  if classifier is not None:
    validation.validate(classifier, num_devices=jax.device_count())
  if student is not None:
    # Of sampling the cells decide, and what they set was checked with them.
    student.sampling.update(
      {"guidance": "distilled", "w": student.distill.w_low, "rescale": 0.0}
      | {"interval": (), "w_schedule": "constant", "sampler": "ancestral"}
    )
    validation.validate(student, num_devices=jax.device_count())
  return planned


class Training(NamedTuple):
  """A model that cells need.

  Attributes:
    config: of a diffusion model, a student, or a classifier as a guide.
    run_dir: folder of its run.
    teacher: Training that must be done before, or None.
  """

  config: ml_collections.ConfigDict
  run_dir: epath.Path
  teacher: "Training | None" = None


def trainings(planned):
  """Return the models that planned cells need, each once, first needed first.

  Args:
    planned: list of Planned.
  """
  found = {}
  for one in planned:
    for training in one.trainings:
      found.setdefault(training.run_dir, training)
  return list(found.values())


def _plan_cell(config, workdir, cell):
  config = cell_config(
    config,
    p_uncond=cell.p_uncond,
    seed=cell.seed,
    T=cell.T,
    w=cell.w,
    **dict(cell.fields),
  )
  if not config.metrics.feature_dir:
    config.metrics.feature_dir = str(workdir / "feature_net")
  guide_config = guide_dir = teacher = None
  run_dir = workdir / "runs" / f"p{cell.p_uncond:g}{cell.suffix}"
  if _trains_its_student(config):
    teacher = Training(_teacher_config(config), run_dir)
    config = student_config(config)
    # Of the teacher as it is now: a longer training has another student.
    steps = teacher.config.train.steps
    config.distill.teacher = str(run_dir)
    config.distill.teacher_step = steps
    run_dir = run_dir.with_name(f"student_{run_dir.name}_of_step{steps}")
  elif _trains_its_classifier(config):
    guide_dir = workdir / "runs" / f"classifier{cell.suffix}"
    config.sampling.guide_dir = str(guide_dir)
    guide_config = classifier_config(config)
  validation.validate(config, num_devices=jax.device_count())
  fields = _settings(config, guide_config, teacher)
  name = f"{cell.id}-{identity.settings_digest(fields, _defaults())}"
  return Planned(
    cell,
    config,
    run_dir=run_dir,
    folder=workdir / "cells" / name,
    settings=fields,
    guide_config=guide_config,
    guide_dir=guide_dir,
    teacher=teacher,
  )


def _trains_its_student(config):
  tasks = methods.METHODS[config.sampling.guidance].tasks
  return config.task not in tasks and bool(config.sweep.student)


def _teacher_config(config):
  """Return the config of a cell's teacher, which the cell does not sample."""
  config = config.copy_and_resolve_references()
  config.sampling.update({"guidance": "none", "w": 0.0})
  return config


def _trains_its_classifier(config):
  return (
    methods.METHODS[config.sampling.guidance].guide == "classifier"
    and not config.sampling.guide_dir
    and bool(config.sweep.classifier)
  )


def _settings(config, guide_config, teacher):
  """Return all that the numbers of a cell depend on, by dotted field."""
  metrics = identity.to_dict(config)["metrics"]
  metrics = {k: v for k, v in metrics.items() if k not in _NO_EFFECT}
  fields = {
    **_model_settings(config),
    **identity.of_sampling(config),
    **identity.flatten({"metrics": metrics}),
  }
  if guide_config is not None and "sampling.second_dir" in fields:
    # Named by what it is: its path moves with the sweep.
    del fields["sampling.second_dir"]
    guide = _model_settings(guide_config)
    fields |= {_CLASSIFIER + k: v for k, v in guide.items()}
  if teacher is not None:
    theirs = _model_settings(teacher.config)
    fields |= {_TEACHER + k: v for k, v in theirs.items()}
  return fields


def _model_settings(config):
  fields = identity.flatten(identity.of_model(config))
  return fields | {"train.steps": config.train.steps}


def _defaults():
  default = identity.recorded_defaults()
  return default | {
    prefix + k: v
    for prefix in (_CLASSIFIER, _TEACHER)
    for k, v in default.items()
  }


def shard(planned, index, count):
  """Return the share of one of several jobs: a run of neighbouring cells.

  Neighbours share a model and a compilation. The jobs, whose index counts from
  1, get about equal numbers of network evaluations.
  """
  sizes = (
    one.cell.T * (2 if one.cell.w and one.teacher is None else 1)
    for one in planned
  )
  ends = list(itertools.accumulate(sizes))
  middles = [(end + start) / 2 for start, end in itertools.pairwise([0, *ends])]
  return [
    one
    for one, middle in zip(planned, middles, strict=True)
    if int(middle / ends[-1] * count) == index - 1
  ]
