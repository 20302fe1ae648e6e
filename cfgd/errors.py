"""The one error that is the caller's and not the program's."""


class UserError(ValueError):
  """A mistake in a config, a path or a file, told in one line.

  The message names what is wrong, where, the value, and what is allowed or what
  to do. Entry points print it and exit with code 2; anything else that is
  raised is a defect of ours and keeps its traceback.
  """
