"""The rows of METHODS, SAMPLERS and GRIDS, and the documentation's tables."""

import pathlib
import re

import pytest

from cfgd import diffusion
from cfgd import methods

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def documented(page="guidance.md", header="| `guidance` | what |"):
  """Return {name: its cells} of a table, that of the methods by default."""
  text = (DOCS / page).read_text()
  table = text[text.index(header) :].split("\n\n")[0]
  rows = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in table.splitlines()[2:]
  ]
  return {name.strip("`"): cells for name, *cells in rows}


def test_the_documentation_has_every_method():
  assert list(documented()) == list(methods.METHODS)


@pytest.mark.parametrize("name", methods.METHODS)
def test_the_documentation_has_what_a_method_needs_and_costs(name):
  method = methods.METHODS[name]
  what, guide, null, cost = documented()[name]
  assert guide == method.guide
  assert (null == "yes") == method.null
  if method.max_classes:
    assert f"at most {method.max_classes} classes" in what
  strength = methods.Strength(w=1.0, classifier_w=1.0)
  written = re.sub(r"(\d)g", r"\1 * g", cost)
  for g, classes in ((0.25, 10), (2.0, 3)):
    made = method.evaluations(strength, methods.Costs(g, 1.0, classes))
    assert eval(written, {"g": g, "K": classes}) == made
  unguided = methods.Strength(w=0.0, classifier_w=0.0)
  at_zero = method.evaluations(unguided, methods.Costs(0.25, 1.0, 10))
  assert at_zero == (1 if method.at_zero or not method.strengths else 1.5)


def named(cell):
  return tuple(re.findall(r"`(\w+)`", cell))


def test_the_documentation_has_every_sampler_with_its_numbers():
  rows = documented("sampling.md", "| `sampler` | what | order |")
  assert list(rows) == list(diffusion.SAMPLERS)
  for name, (_, _, noise, v, numbers, grid) in rows.items():
    row = diffusion.SAMPLERS[name]
    assert set(named(numbers)) == set(row.numbers)
    assert (v == "yes") == row.uses_v
    assert bool(noise) == ("noise_scale" in numbers or bool(row.without_score))
    assert named(grid)[0] in methods.GRIDS


def test_the_documentation_has_every_grid_with_its_numbers():
  rows = documented("sampling.md", "| `grid` | log-SNRs |")
  assert list(rows) == list(methods.GRIDS)
  for name, (_, numbers) in rows.items():
    assert named(numbers) == methods.GRIDS[name].numbers


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_preview_needs_no_guiding_network(name):
  for p_uncond in (0.0, 0.1, 1.0):
    alone = methods.METHODS[methods.without_guide(name, p_uncond)]
    assert not alone.guide
    assert p_uncond > 0 or not alone.null
    assert p_uncond < 1 or alone.null
