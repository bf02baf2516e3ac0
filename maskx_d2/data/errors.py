"""``InputError``: an error that the user can fix."""


class InputError(ValueError):
    """
    A file, an option or a config key that the user gave cannot be used. The message is one sentence that
    names it, what was found and what was expected. Commands print that sentence and exit with status 2; any
    other exception is a fault, with status 3.
    """


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that the user named does not exist."""
