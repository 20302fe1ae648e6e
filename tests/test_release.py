"""The wheel, installed and used outside of the checkout."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests import processes

ROOT = processes.ROOT


def run(*arguments, cwd, **environment):
  return subprocess.run(
    [sys.executable, *map(str, arguments)],
    cwd=cwd,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


def test_versions_agree():
  version = re.search(r'version="(.*?)"', (ROOT / "setup.py").read_text())[1]
  cited = re.search(
    r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M
  )[1]
  newest = re.search(r"^## (\S+),", (ROOT / "CHANGELOG.md").read_text(), re.M)[
    1
  ]
  assert version == cited == newest
  assert "arXiv:2207.12598" in (ROOT / "CITATION.cff").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Build from a copy without what git does not track; return the file."""
  folder = tmp_path_factory.mktemp("release")
  source, made = folder / "source", folder / "dist"
  ignored = shutil.ignore_patterns(".*", "runs", "*.egg-info", "__pycache__")
  shutil.copytree(ROOT, source, ignore=ignored)
  done = run("-m", "build", "--outdir", made, cwd=source)
  assert not done.returncode, done.stdout[-2000:] + done.stderr[-2000:]
  (found,) = made.glob("*.whl")
  return found


@pytest.mark.slow
def test_the_source_archive_has_what_the_readme_links_to(wheel):
  (archive,) = wheel.parent.glob("*.tar.gz")
  with tarfile.open(archive) as opened:
    names = {name.partition("/")[2] for name in opened.getnames()}
  text = (ROOT / "README.md").read_text()
  links = re.findall(r"\]\(([\w./-]+)\)", text)
  assert len(links) > 10
  assert {link for link in links if "://" not in link} <= names
  assert {"LICENSE", "CITATION.cff", "CHANGELOG.md"} <= names
  assert not any(name.startswith("tests") for name in names)


@pytest.mark.slow
def test_the_wheel_has_what_runs_need_and_no_tests(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  assert {"cfgd/sweep/estimates.json", "configs/imagenet64.py"} <= set(names)
  tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
  assert tops == {"cfgd", "configs", "experiments"}
  every = {
    str(path.relative_to(ROOT))
    for top in tops
    for path in (ROOT / top).rglob("*.py")
  }
  assert every <= set(names)


@pytest.mark.slow
def test_the_commands_work_where_only_the_wheel_is(wheel, tmp_path):
  place, cwd = tmp_path / "site", tmp_path / "elsewhere"
  cwd.mkdir()
  pip = ("-m", "pip", "install", "--no-deps", "--target", place, wheel)
  done = run(*pip, cwd=cwd)
  assert not done.returncode, done.stderr
  here = {"PYTHONPATH": str(place)}
  where = run("-c", "import cfgd; print(cfgd.__file__)", cwd=cwd, **here)
  assert where.stdout.startswith(str(place))
  steps = ("--config.train.steps=2", "--config.train.sample_every=0")
  steps += ("--workdir=run", "--config.sampling.num_samples=8")
  for module, arguments in (
    ("train", ("--config=configs/embedded.py", *steps)),
    ("sample", steps),
    ("sweep", ("--config=configs/sweep_imagenet64.py:fast", "--plan")),
  ):
    arguments += ("--workdir=sweep",) * (module == "sweep")
    done = run("-m", f"experiments.{module}", *arguments, cwd=cwd, **here)
    assert not done.returncode, done.stderr[-2000:]
  assert list(cwd.glob("run/samples/*/samples_8.npz"))
  wrong = run(
    "-m",
    "experiments.train",
    "--config=configs/no.py",
    steps[2],
    cwd=cwd,
    **here,
  )
  assert wrong.returncode == 2
  assert wrong.stderr.strip().splitlines()[-1].startswith("error: --config=")
