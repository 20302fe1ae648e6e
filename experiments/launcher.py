"""Flags, error lines and exit codes, shared by all entry points."""

import contextlib
import difflib
import logging as python_logging
import os
import re
import sys
import traceback

from absl import app
from absl import flags
from absl import logging
import clu
import jax
from ml_collections import config_flags

from cfgd import identity
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.runtime import peers
from cfgd.runtime import preemption
from cfgd.runtime import xla
from configs import base

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Whose progress is logged: ours and clu's reports. ROOT as a whole may contain
# the virtual environment.
_SHOWN = (
  os.path.join(ROOT, "cfgd"),
  os.path.join(ROOT, "experiments"),
  os.path.dirname(clu.__file__),
)

_JOIN_SECONDS = flags.DEFINE_integer(
  "join_seconds", 300, "Wait this long for the other processes.", lower_bound=1
)
_PEER_SECONDS = flags.DEFINE_integer(
  "peer_seconds",
  40,
  "Silence after which another process counts as dead and all end.",
  lower_bound=1,
)
# What to change when the devices run out of memory, unless the work says so.
_MEMORY = (
  "train.batch_size",
  "sampling.batch_size",
  "metrics.batch_size",
  "set model.remat=True",
  "raise train.microbatches",
)
_OVERRIDE = re.compile(r"--?(?:no)?config\.([\w.]+)")
# Libraries that log a traceback and raise the error, too.
_RAISING = ("orbax", "gcsfs", "asyncio")
_OPEN = ("sweep.grids.", "sweep.figures.")  # sections with names of their own
_HELP = re.compile(r"--?(help\w*|\?)$")
_INTERRUPTED = "interrupted; run the same command again to resume"
_EXIT_INTERRUPTED = 130  # as shells say for Ctrl-C


def define_config(default):
  """Define --config.

  Args:
    default: file name in configs/, whatever the working directory.
  """
  sys.argv[1:] = _installed(sys.argv[1:])
  # The default config is overridden here, one from --config when flags are
  # parsed, so an unknown field can turn up in either place.
  with _mistakes_in_one_line():
    return config_flags.DEFINE_config_file(
      "config",
      os.path.join(ROOT, "configs", default),
      "Config file; override fields by --config.section.field=value.",
      lock_config=True,
    )


def _installed(arguments):
  """Return arguments with configs/NAME.py as the file of this package.

  Unless there is one below the working directory. So the documented commands
  work wherever the package is installed.
  """
  found = []
  for argument in arguments:
    if found and found[-1] in ("-config", "--config"):
      argument = f"{found.pop()}={argument}"
    flag, _, path = argument.partition("=")
    path = path.removeprefix("./")
    name = path.partition(":")[0]  # without the form
    documented = flag.lstrip("-") == "config" and name.startswith("configs/")
    ours = os.path.join(ROOT, name)
    if documented and os.path.exists(ours) and not os.path.exists(name):
      argument = f"{flag}={os.path.join(ROOT, path)}"
    found.append(argument)
  return found


def run(main):
  """Parse flags, join the other processes and call main().

  A mistake ends in one line on standard error and exit code 2; docs/faults.md
  lists the others.

  Args:
    main: function without arguments.
  """
  xla.set_options()
  _set_up_logging()
  sys.unraisablehook = _without_closed_loops(sys.unraisablehook)
  app.run(lambda argv: _guard(main, argv), flags_parser=_parse)


def _guard(main, argv):
  """Call main() and turn our errors into lines and exit codes."""
  if len(argv) > 1:
    _stop(f"{argv[1]}: unknown argument; options are --name=value")
  try:
    distributed.initialize(
      join_seconds=_JOIN_SECONDS.value, peer_seconds=_PEER_SECONDS.value
    )
    peers.watch()
    preemption.install()
    if "workdir" in flags.FLAGS and flags.FLAGS.workdir:
      files.check_place(flags.FLAGS.workdir)
    with distributed.naming_memory(*_MEMORY):
      main()
    peers.done()
  except errors.UserError as error:
    _stop(error)
  except errors.Preempted as error:
    peers.done()  # all processes are asked to end, and save together
    print(f"stopped: {_in_one_line(error)}", file=sys.stderr)
    sys.exit(errors.EXIT_AGAIN)
  except KeyboardInterrupt:
    _stop(_INTERRUPTED, _EXIT_INTERRUPTED, "stopped")
  except Exception as error:
    if isinstance(error, errors.Outage) or files.is_outage(error):
      _stop(f"{error}; run the same command again", errors.EXIT_AGAIN)
    if isinstance(error, errors.RunError | OSError):  # disk full, no access
      _stop(error, 1)
    if isinstance(error, ImportError) and re.search("gcsfs|s3fs", str(error)):
      _stop(f"{error}: {files.STORES}")
    if not jax.distributed.is_initialized():
      raise
    if not peers.has_lost_one(error):
      traceback.print_exc()
    peers.end(f"{type(error).__name__}: {errors.first_line(error)}", 1)


def _without_closed_loops(hook):
  """Drop the hundreds of errors that TensorStore prints after a failed save."""

  def filtered(unraisable):
    error = unraisable.exc_value
    # SIGTERM in a callback has set the flag, see `preemption`.
    if str(error) != "Event loop is closed" and not isinstance(
      error, errors.Preempted
    ):
      hook(unraisable)

  return filtered


def parse_shard(text):
  """Return (i, n) of the text "i/n"."""
  index, slash, count = text.partition("/")
  if not (slash and index.isdigit() and count.isdigit()) or not (
    1 <= int(index) <= int(count)
  ):
    raise errors.UserError(
      f"--shard={text}: must be i/n with i from 1 to n, such as 3/16"
    )
  return int(index), int(count)


def unknown_field(argv, renamed=identity.RENAMED):
  """Return a line about the first --config.FIELD that no config has, or None.

  Args:
    argv: command line.
    renamed: {old field: what to do instead}.
  """
  fields = _fields(base.get_config())
  for argument in argv:
    match = _OVERRIDE.match(argument)
    field = match and match[1]
    if not field or field in fields or field.startswith(_OPEN):
      continue
    return f"--config.{field}: no such field; " + (
      renamed.get(field) or _did_you_mean(field, fields)
    )
  return None


def _fields(config, prefix=""):
  """Return the dotted names of all fields and sections."""
  fields = []
  for name, value in config.items():
    fields.append(prefix + name)
    if hasattr(value, "items"):
      fields += _fields(value, f"{prefix}{name}.")
  return fields


def _did_you_mean(field, fields):
  """Suggest fields of the same name elsewhere, or similar ones."""
  last = field.rpartition(".")[2]
  found = [one for one in fields if one.rpartition(".")[2] == last]
  found = found or difflib.get_close_matches(field, fields, cutoff=0.8)
  if not found:
    return "configs/base.py has all fields"
  return f"did you mean {' or '.join(found)}?"


def _parse(argv):
  with _mistakes_in_one_line():
    try:
      rest = flags.FLAGS(argv)
    except SystemExit:
      if any(map(_HELP.match, argv)):  # absl ends it with code 1
        sys.exit(0)
      raise
    # A file that cannot be loaded raises at the first access.
    if "config" in flags.FLAGS:
      flags.FLAGS.config.to_dict()
    return rest


@contextlib.contextmanager
def _mistakes_in_one_line():
  try:
    yield
  except flags.Error as error:
    _stop(_innermost(error))
  except (AttributeError, KeyError) as error:
    line = unknown_field(sys.argv) or _missing_name(sys.argv, error)
    _stop(line or f"--config: {error}")
  except OSError as error:
    why = re.search(r"\[Errno \d+\] ([^:]+)", str(error))
    _stop(f"{_given()}: {why[1] if why else error}")
  except (TypeError, ValueError) as error:
    _stop(f"--config: {error}")
  except Exception as error:  # of the config file
    _stop(f"{_given()}: {type(error).__name__}: {error}{_place(error)}")


def _innermost(error):
  """Return an error as a line; of a config file's, with its place.

  ml_collections raises what a config file raises again, with the traceback in
  its message.
  """
  missing = re.search(r"(--\w+)=None: .*other than None", str(error))
  if missing:
    return f"{missing[1]}: is needed; --help says what it is"
  if "whilst parsing config file" not in str(error):
    return str(error)
  first = error
  while first.__context__:
    first = first.__context__
  given = _given()
  if ":" in given and "get_config() takes 0 positional" in str(first):
    return f"{given}: this config has no forms; leave out what follows ':'"
  return f"{given}: {first}{_place(first)}"


def _place(error):
  """Return where an error was raised, unless `check_form` found a mistake."""
  if isinstance(error, SyntaxError):
    return ""  # says so itself
  frame = traceback.extract_tb(error.__traceback__)[-1]
  where = f" ({os.path.relpath(frame.filename)}:{frame.lineno})"
  return where * (frame.name != "check_form")


def _given():
  """Return the config's argument on the command line."""
  return ["--config", *(k for k in sys.argv if re.match("--?config=", k))][-1]


def _missing_name(argv, error):
  """Return a line about an override of a grid or axis that is not there."""
  name = str(error).strip("\"'")
  for argument in argv:
    match = _OVERRIDE.match(argument)
    parts = match[1].split(".") if match else ()
    if match and match[1].startswith(_OPEN) and name in parts:
      where = ".".join(parts[: parts.index(name)])
      return (
        f"--config.{match[1]}: {where} has no {name!r} in this config; add it "
        "in a config file"
      )
  return None


def _set_up_logging():
  """Log our own progress in full, of libraries only warnings."""
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(
    python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
  )
  handler.addFilter(_is_shown)


def _is_shown(record):
  if record.exc_info and any(k in record.pathname for k in _RAISING):
    return False  # ends in a line of its own
  return record.levelno >= python_logging.WARNING or (
    record.pathname.startswith(_SHOWN)
  )


def _stop(error, code=2, kind="error"):
  """Print a line and end now, even if a thread waits for a store."""
  line = _in_one_line(error)
  print(f"{kind}: {line}", file=sys.stderr)
  peers.end(line, code)


def _in_one_line(error):
  return " ".join(str(error).split())
