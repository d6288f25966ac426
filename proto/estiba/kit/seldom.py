"""Say what lasts once, and then now and then: an outage of a night fills no log. Pure."""


class Seldom:
    """Remembers when something was last said."""

    def __init__(self, *, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._said_at_s = float("-inf")

    def due(self, now_s: float) -> bool:
        """Return True the first time, and again once ``every_s`` have passed since."""
        if now_s - self._said_at_s < self._every_s:
            return False
        self._said_at_s = now_s
        return True

    def reset(self) -> None:
        """What lasted is over; the next is the first again."""
        self._said_at_s = float("-inf")
