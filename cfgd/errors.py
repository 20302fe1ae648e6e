"""The errors that are told in one line."""


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
