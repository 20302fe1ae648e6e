"""Run entry points in processes of their own.

`Forks` saves their imports, most of what a short run costs: a server has
imported what the entry points need, and forks for each run.
"""

import atexit
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback

ROOT = pathlib.Path(__file__).parent.parent
_TIMEOUT = 240
_PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def start(name, *arguments):
  """Start `python -m experiments.NAME`; returns a Popen."""
  command = [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)]
  return subprocess.Popen(command, cwd=ROOT, **_PIPES)


def run(name, *arguments):
  """Return (exit code, output, errors) of an entry point."""
  process = start(name, *arguments)
  out, err = process.communicate(timeout=_TIMEOUT)
  return process.returncode, out, err


class Forks:
  """Runs entry points as `run` does, in forks of one server."""

  def __enter__(self):
    self._server = subprocess.Popen(
      [sys.executable, "-m", "tests.processes"],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    return self

  def __exit__(self, *_):
    self._server.stdin.close()
    self._server.wait()

  def run(self, name, *arguments):
    """Return (exit code, output, errors) of an entry point."""
    with tempfile.TemporaryDirectory() as folder:
      request = {"name": name, "arguments": [*map(str, arguments)]}
      request["streams"] = [f"{folder}/out", f"{folder}/err"]
      self._server.stdin.write(json.dumps(request) + "\n")
      self._server.stdin.flush()
      code = int(self._server.stdout.readline())
      texts = [pathlib.Path(path).read_text() for path in request["streams"]]
    return code, *texts


def _serve():
  """Fork for each line of standard input."""
  from cfgd.metrics import evaluate  # noqa: F401
  from cfgd.training import loop  # noqa: F401
  from experiments import launcher  # noqa: F401

  for line in sys.stdin:
    if not os.fork():
      _become(**json.loads(line))
    _, status = os.wait()
    print(os.waitstatus_to_exitcode(status), flush=True)


def _become(name, arguments, streams):
  """Run an entry point and end; Python's own way out takes a second here."""
  for number, path in enumerate(streams, start=1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
  signal.alarm(_TIMEOUT)
  sys.argv = [name, *arguments]
  code = 0
  try:
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
  except SystemExit as exit_:
    code = exit_.code or 0
  except BaseException:
    traceback.print_exc()
    code = 1
  atexit._run_exitfuncs()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


if __name__ == "__main__":
  _serve()
