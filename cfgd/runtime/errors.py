"""Errors that are reported in one line."""

# Run the same command again and it resumes; launchers restart on this code.
# It is EX_TEMPFAIL of sysexits.h.
EXIT_AGAIN = 75


class UserError(ValueError):
  """A mistake in a config, a path or a file.

  The message names the field or path, its value, and what is allowed or what
  to do. Entry points print it and exit with code 2. Any other exception is a
  bug of this project and keeps its traceback.
  """


class RunError(RuntimeError):
  """A run that could not be finished; entry points exit with code 1."""


class NonFiniteError(RunError):
  """A NaN or infinity where there must be none."""


class Outage(RunError):
  """A store that did not answer; the same command resumes: EXIT_AGAIN."""


class Preempted(BaseException):
  """A run that was asked to end and has saved its work; EXIT_AGAIN.

  `except Exception` does not swallow it.
  """


def first_line(error, length=160):
  """Return the start of an error's message, to quote in another one."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0] if len(lines[0]) <= length else lines[0][:length] + "..."
