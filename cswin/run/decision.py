"""One question: is a stage resumed (from which step), begun, or refused (why)?

It is decided by content, not by why a job was started:

- A state of the same identity is resumed. If the stage is complete, nothing is left to train, and its files are written again
  from the state, with the same bits.
- A state of another computation (another configuration, other images, another start) is set aside, and the stage begins.
- A complete stage whose repetition was asked for (`cswin.run.repeat`) begins.
- A state of the same computation by other versions of what computes is neither: going on mixes two versions, and beginning costs
  what was trained. The user decides with `cswin state`; until then the stage is refused.
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
    """What is done with the states of a stage.

    Attributes:
        state: the state to resume from; None: the stage begins.
        aside: why the states that are there are not continued; None where they are, or where there are none.
        versions: what the user accepted, {"step", "was", "now"}, the last two as `code_of`; None where nothing changed.
    """

    state: State | None = None
    aside: str | None = None
    versions: dict[str, Any] | None = None


def decide(states: StateFolder, identity: dict[str, Any]) -> Decision:
    """What becomes of a stage with these states, if its computation is `identity`. Only damaged states are renamed.

    Raises:
        UserError: if only the versions of what computes have changed, in the middle of the stage, and nobody has accepted it.
    """
    if not states.path.exists():
        return Decision()
    state = states.load()
    if states.repeat:
        return Decision(aside="the stage is complete, and to train it again from the start was asked for")
    if state is None:
        return Decision(aside="it holds no whole state")
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
            f"{folder}: the versions of what computes have changed in the middle of the stage (at step {state.step}): "
            f"{'; '.join(code)}. Nothing was changed. Install the versions of before; or choose, and give the same command again: "
            f"go on with these versions, as the stage's record will say (cswin state {folder} --accept-versions), or begin the "
            f"stage anew (cswin state {folder} --set-aside)"
        )
    return Decision(state, versions={"step": state.step, "was": was, "now": now})
