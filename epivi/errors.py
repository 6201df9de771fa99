"""The one exception for what a user can put right."""


class UserError(Exception):
    """Bad input, configuration or state that the user can correct.

    The message is one line that names file, line, column or key, the offending value and what was expected. The command
    line prints it without a traceback and exits with status 2.
    """
