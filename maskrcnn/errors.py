"""The one exception for what a user can put right."""


class InputError(ValueError):
    """A file, folder or option of the user's is not what it must be.

    The message is one line: it names the file or option, says what was found and what is expected. ``train.py`` and
    ``infer.py`` print it without a traceback and exit with status 2.
    """
