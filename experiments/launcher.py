"""What every entry point does around its one call."""

import contextlib
import logging as python_logging
import os
import sys

from absl import app
from absl import flags
from absl import logging
import clu
from ml_collections import config_flags

from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import peers
from cfgd.runtime import preemption
from cfgd.runtime import xla

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Whose progress is shown: ours, and clu's reports. Not all of ROOT: it may hold
# the virtual environment.
_SHOWN = (
  os.path.join(ROOT, "cfgd"),
  os.path.join(ROOT, "experiments"),
  os.path.dirname(clu.__file__),
)

_JOIN_SECONDS = flags.DEFINE_integer(
  "join_seconds", 300, "Wait so long for the other processes.", lower_bound=1
)
_PEER_SECONDS = flags.DEFINE_integer(
  "peer_seconds",
  100,
  "Silence after which another process counts as dead and all end.",
  lower_bound=1,
)
# What needs the devices' memory, where the work itself has not said so.
_MEMORY = (
  "train.batch_size",
  "sampling.batch_size",
  "metrics.batch_size",
  "set model.remat=True",
  "raise train.microbatches",
)
_INTERRUPTED = "interrupted; the same command goes on from what is saved"
_EXIT_INTERRUPTED = 130  # as shells say for Ctrl-C


def define_config(default):
  """Define --config.

  Args:
    default: file name in configs/, used wherever the command is run from.
  """
  # The overrides of a default config are applied here, those of a given one
  # while flags are parsed: an unknown field can turn up in either place.
  with _mistakes_in_one_line():
    return config_flags.DEFINE_config_file(
      "config",
      os.path.join(ROOT, "configs", default),
      "Config file; override fields by --config.section.field=value.",
      lock_config=True,
    )


def run(main):
  """Parse flags, join the other processes, call main(); one line per mistake.

  Args:
    main: function without arguments.
  """

  def guarded(argv):
    if len(argv) > 1:
      _stop(f"{argv[1]}: unknown argument; options are --name=value")
    try:
      distributed.initialize(
        join_seconds=_JOIN_SECONDS.value, peer_seconds=_PEER_SECONDS.value
      )
      peers.watch(_PEER_SECONDS.value)
      preemption.install()
      with distributed.naming_memory(*_MEMORY):
        main()
      peers.done()
    except errors.UserError as error:
      _stop(error)
    except errors.Preempted as error:
      peers.done()  # all of them are asked to end, and save together
      _stop(error, errors.EXIT_AGAIN, "stopped")
    except KeyboardInterrupt:
      _stop(_INTERRUPTED, _EXIT_INTERRUPTED, "stopped")
    except (errors.RunError, OSError) as error:  # OSError: disk full, no access
      _stop(error, 1)
    except Exception as error:
      peers.fail(f"{type(error).__name__}: {errors.first_line(error)}", 1)
      raise

  xla.set_options()
  _set_up_logging()
  sys.excepthook = _without_closed_loops(sys.excepthook)
  app.run(guarded, flags_parser=_parse)


def _without_closed_loops(hook):
  """Drop what TensorStore prints, by the hundred, after a save that failed."""

  def filtered(kind, error, trace):
    if str(error) != "Event loop is closed":
      hook(kind, error, trace)

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


def _parse(argv):
  with _mistakes_in_one_line():
    rest = flags.FLAGS(argv)
    # A file that cannot be loaded raises when it is first looked at.
    if "config" in flags.FLAGS:
      flags.FLAGS.config.to_dict()
    return rest


@contextlib.contextmanager
def _mistakes_in_one_line():
  try:
    yield
  except flags.Error as error:
    _stop(error)
  except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    _stop(f"--config: {error}")


def _set_up_logging():
  """Log our own progress in full, of libraries what needs attention."""
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(
    python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
  )
  handler.addFilter(_is_shown)


def _is_shown(record):
  if "orbax" in record.pathname and record.exc_info:
    return False  # what went wrong with a save is raised, and told in one line
  return record.levelno >= python_logging.WARNING or (
    record.pathname.startswith(_SHOWN)
  )


def _stop(error, code=2, kind="error"):
  line = " ".join(str(error).split())
  print(f"{kind}: {line}", file=sys.stderr)
  if code != errors.EXIT_AGAIN:
    peers.fail(line, code)
  sys.exit(code)
