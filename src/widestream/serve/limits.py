"""What one server takes on, and how it refuses the rest."""

from dataclasses import dataclass, fields

from widestream.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server. With them its memory is bounded too."""

    tokens: int
    """Longest prompt and answer together, boundary included."""
    rows: int = 16
    """Sequences that are computed side by side."""
    choices: int = 8
    """Most sequences of one request: prompts times n."""
    waiting: int = 64
    """Requests that wait at most; more are refused with 429."""
    seconds: float = 60.0
    """Longest time for a request, waiting included. What there is by then is its answer."""
    body: int = 2**20
    """Largest body in bytes."""
    grace: float = 10.0
    """Seconds that running requests have when the server is told to end."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            least = 2 if field.name == "tokens" else 0 if field.name == "grace" else 1
            if not least <= value < float("inf"):
                raise UserError(f"The limit {field.name} must be {least} or more, and finite, not {value}.")
        if self.choices > self.rows:
            raise UserError(
                f"A request may not ask for more choices ({self.choices}) than are computed side by side "
                f"({self.rows}); lower the one or raise the other."
            )


class Refusal(Exception):
    """A request that is not served, and why.

    Args:
        status: of HTTP.
        message: one sentence that says what to do.
        param: the key of the body that is wrong, if it is one.
        code: in a word, for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
