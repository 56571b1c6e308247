"""Problems that a search can be run on, each with the rule that checks its answers."""

from dendrite.search.tasks.countdown import Countdown, problems

__all__ = ["Countdown", "problems"]
