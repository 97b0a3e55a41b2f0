"""What a user can put right is one exception; the command line turns it into one sentence and exit code 2."""


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one clear sentence that says how to mend it."""
