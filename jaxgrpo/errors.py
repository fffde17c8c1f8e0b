"""The base of every error that a user can mend. Its message is one line: what was wrong, with which value, what to do."""


class UserError(ValueError):
    """Shown by the command line without a traceback."""

    exit_code = 1  # 1: the work failed; 2: the command or its configuration cannot be meant
    on_all_hosts = False  # whether all hosts of a job raise it at the same place, so that none waits for another
