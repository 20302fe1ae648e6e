"""Stand-ins for what a cluster has: they record how they are called."""

import os
import pathlib
import stat
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
# A record per call: the command's name and arguments. What a test wants it to
# say or do beyond that is a script of its own.
_FAKE = r"""#!/usr/bin/env bash
name="${0##*/}"
{ printf '%s' "$name"; printf '\x1f%s' "$@"; printf '\x1e'; } >> "$FAKES/calls"
if [[ -f "$FAKES/$name.does" ]]; then source "$FAKES/$name.does"; fi
"""


class Fakes:
  """Commands on the PATH that do nothing but record."""

  def __init__(self, folder):
    self.folder = folder
    self.environment = {
      "PATH": f"{folder}:{os.environ['PATH']}",
      "HOME": str(folder),
      "FAKES": str(folder),
    }

  def add(self, name, does=""):
    """Put a command on the PATH; `does` is Bash, run with its arguments."""
    path = self.folder / name
    path.write_text(_FAKE)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (self.folder / f"{name}.does").write_text(does)

  def run(self, script, *arguments, text="", cwd=ROOT, **environment):
    """Run a script of launch/; return its exit code, output and errors."""
    done = subprocess.run(
      [ROOT / "launch" / script, *map(str, arguments)],
      input=text,
      env=self.environment | environment,
      cwd=cwd,
      capture_output=True,
      text=True,
      timeout=60,
    )
    return done.returncode, done.stdout, done.stderr

  def calls(self):
    """Return the calls so far, each a list of words."""
    path = self.folder / "calls"
    text = path.read_text() if path.exists() else ""
    return [call.split("\x1f") for call in text.split("\x1e")[:-1]]


@pytest.fixture
def fakes(tmp_path):
  return Fakes(tmp_path)
