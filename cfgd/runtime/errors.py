"""The errors that are told in one line."""

# What launchers restart on: the same command again goes on from what is saved.
# It is sysexits.h's EX_TEMPFAIL.
EXIT_AGAIN = 75


class UserError(ValueError):
  """A mistake in a config, a path or a file.

  The message names what is wrong, where, the value, and what is allowed or what
  to do. Entry points print it and exit with code 2; what is not one of the
  errors here is a defect of ours and keeps its traceback.
  """


class RunError(RuntimeError):
  """A run that could not be finished; entry points exit with code 1."""


class NonFiniteError(RunError):
  """Numbers that are not finite, said and never hidden."""


class Preempted(RunError):
  """A run that ended on request, work saved; exit code EXIT_AGAIN."""


def first_line(error, length=160):
  """Return the start of an error's message, for a line of one's own."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0] if len(lines[0]) <= length else lines[0][:length] + "..."
