"""Decides whether a stage is resumed, started from its first step, or refused.

The decision depends on the content of the state, not on the reason why the job runs:

- A state with the same identity is resumed. If the stage is complete, nothing is trained: its files are written again from the
  state, bit-identical.
- A state with another identity (configuration, images, input checkpoint) is set aside, and the stage starts.
- A complete stage starts again if that was requested (`cswin.run.repeat`).
- A state that differs only in the versions of the code is refused. Resuming would mix two versions, and starting again would
  discard the training so far. The user decides with `cswin state`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cswin.errors import UserError
from cswin.run.identity import code_of, differences
from cswin.run.states import StateFolder
from cswin.train.state import State


@dataclass(frozen=True)
class Decision:
    """What to do with the saved states of a stage.

    Attributes:
        state: the state to resume from; None: the stage starts from its first step.
        aside: why the existing states are not continued; None if they are, or if there are none.
        versions: the change of versions that the user accepted, {"step", "was", "now"}, the last two as `code_of`; or None.
    """

    state: State | None = None
    aside: str | None = None
    versions: dict[str, Any] | None = None


def decide(states: StateFolder, identity: dict[str, Any]) -> Decision:
    """The decision for a stage with these states and this identity. Nothing is changed, except that damaged states are renamed.

    Raises:
        UserError: if only the versions of the code have changed, in the middle of the stage, and the user has not accepted it.
    """
    if not states.path.exists():
        return Decision()
    state = states.load()
    if states.repeat:
        return Decision(aside="the stage is complete, and training it again from the start was requested")
    if state is None:
        return Decision(aside="it holds no undamaged state")
    saved = state.meta["fingerprint"]
    was, now = code_of(saved), code_of(identity)
    changed, code = differences(saved, identity), differences(was, now)
    if len(changed) > len(code):
        return Decision(aside="; ".join(["it belongs to another computation", *changed]))
    if not code or states.completed:
        return Decision(state)
    if states.accepted_versions != now:
        folder = states.path.parent
        raise UserError(
            f"{folder}: the versions of the code have changed in the middle of the stage (at step {state.step}): "
            f"{'; '.join(code)}. Nothing was changed. Install the previous versions, or choose and give the same command again: "
            f"continue with these versions, which the stage's record will say (cswin state {folder} --accept-versions), or start "
            f"the stage from its first step (cswin state {folder} --set-aside)"
        )
    return Decision(state, versions={"step": state.step, "was": was, "now": now})
