"""What pip is asked for on machines of other kinds than this one."""

from packaging import requirements
import pytest
import setuptools

from tests import processes

MACHINES = {
  "a PC": {"sys_platform": "linux", "platform_machine": "x86_64"},
  "Grace": {"sys_platform": "linux", "platform_machine": "aarch64"},
  "Apple silicon": {"sys_platform": "darwin", "platform_machine": "arm64"},
}


@pytest.fixture
def arguments(monkeypatch):
  """Return what setup.py gives to setuptools."""
  found = {}
  monkeypatch.setattr(setuptools, "setup", found.update)
  program = (processes.ROOT / "setup.py").read_text()
  exec(compile(program, "setup.py", "exec"), {})
  return found


def asked_for(arguments, machine, python, extras=()):
  """Return the requirements by name that hold on a machine."""
  environment = machine | {"python_version": python, "extra": ""}
  lines = list(arguments["install_requires"])
  for extra in extras:
    lines += arguments["extras_require"][extra]
  parsed = map(requirements.Requirement, lines)
  return {
    one.name: one
    for one in parsed
    if one.marker is None or one.marker.evaluate(environment)
  }


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("kind", MACHINES)
def test_one_tensorflow_that_has_a_wheel(arguments, kind, python):
  found = asked_for(arguments, MACHINES[kind], python)
  named = {name for name in found if name.startswith("tensorflow")}
  # There are wheels of tensorflow-cpu for x86-64 alone.
  one = "tensorflow-cpu" if kind == "a PC" else "tensorflow"
  assert named == {one, "tensorflow-datasets"}
  assert {"jax", "grain", "array_record"} < set(found)


def test_a_pod_can_read_buckets(arguments):
  found = asked_for(arguments, MACHINES["a PC"], "3.12", ["tpu"])
  assert found["jax"].extras == {"tpu"}
  assert "gcsfs" in found
  assert "gcsfs" not in asked_for(arguments, MACHINES["a PC"], "3.12")
