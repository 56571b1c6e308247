"""The phases of an engine step, for whoever wants to know where its time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from dendrite.engine.plan import Plan

Phase: TypeAlias = Literal["schedule", "launch", "model", "wait", "sample", "post"]
"""What a step does at a time.

schedule: choosing the work and reserving its pages; launch: describing the work to the device and queueing it; model:
the call that runs given rows through the model; wait: the host can't go on before the device has drawn its tokens;
sample: drawing tokens on the host; post: accepting them, and putting away what has ended.
"""


class StepClock:
    """Is told what a step comes to. This one does nothing with it; see `dendrite.profiling` for those that do."""

    def begin(self) -> None:
        """A step begins, with `schedule`. The one before may have failed without an `end`."""

    def enter(self, phase: Phase) -> None:
        """What the step does from here on is of that phase."""

    def end(self, plan: Plan) -> None:
        """The step has carried out its plan."""
