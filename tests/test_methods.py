"""The rows of METHODS, and the documentation's table of them."""

import pathlib
import re

import pytest

from cfgd import methods

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "guidance.md"


def documented():
  """Return {name: its cells} of the table of methods."""
  text = PAGE.read_text()
  table = text[text.index("| `guidance` | what |") :].split("\n\n")[0]
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
    made = method.evaluations(strength, g, classes)
    assert eval(written, {"g": g, "K": classes}) == made
  unguided = methods.Strength(w=0.0, classifier_w=0.0)
  at_zero = method.evaluations(unguided, 0.25, 10)
  assert at_zero == (1 if method.at_zero or not method.strengths else 1.5)


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_preview_needs_no_guiding_network(name):
  for p_uncond in (0.0, 0.1, 1.0):
    alone = methods.METHODS[methods.without_guide(name, p_uncond)]
    assert not alone.guide
    assert p_uncond > 0 or not alone.null
    assert p_uncond < 1 or alone.null
