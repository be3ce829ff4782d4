"""What the user did wrong, said in one line."""

from __future__ import annotations


class SettingError(ValueError):
    """A setting, file or folder that cannot be used: names it, what was given and what is allowed.

    The command line prints the message as one line and exits with code 2.
    """


class TrainingError(RuntimeError):
    """Training that cannot go on, since its loss is not a number: names the last good checkpoint and what to try."""
