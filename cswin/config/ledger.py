"""The ledger: what the authors and the report trained with, option by option and step by step, beside the configurations here.

`ledger.yaml` contains the values of the authors and the report, and for each row the key here or the reason why there is none. The
values here are not repeated in it: they come from the resolved configurations. `cswin config --ledger` prints docs/recipe.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cswin.config.compare import flat
from cswin.config.resolve import StageConfig, load_settings, resolve_stage

CONFIG = Path(__file__).resolve().parents[2] / "config"
LISTS = {"authors": "Options of `main.py` and `finetune.py`", "timm": "From the file to the loss", "report": "The report"}


@dataclass(frozen=True)
class Run:
    """A stage of a configuration, and the command that it stands for.

    Attributes:
        label: short name.
        program: `main.py`, `finetune.py` or `report`.
        theirs: value of each option, and of what belongs to the network, in that command.
        ours: value of each key, such as `schedule.base_lr`, resolved; keys of `model` as the network has them.
    """

    label: str
    program: str
    theirs: Mapping[str, Any]
    ours: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A row of the ledger with its values in each run that it belongs to.

    Attributes:
        row: as in the file.
        pairs: by label: their value, the same in our terms, and ours; empty without a key.
    """

    row: Mapping[str, Any]
    pairs: Mapping[str, tuple[Any, Any, Any]]

    @property
    def different(self) -> list[list[Any]]:
        """[their value, our value] where the two are not the same, each once."""
        found = [[theirs, ours] for theirs, meant, ours in self.pairs.values() if meant != ours]
        return [pair for i, pair in enumerate(found) if pair not in found[:i]]

    @property
    def problem(self) -> str | None:
        """What is wrong with the row: a difference without explanation, or an explanation without difference."""
        where, explained = f"{self.row['name']} ({self.row.get('key')})", self.row.get("differs", [])
        if unexplained := [pair for pair in self.different if pair not in explained]:
            return f"{where}: theirs, ours: {unexplained}; not explained"
        if stale := [pair for pair in explained if pair not in self.different]:
            return f"{where}: theirs, ours: {stale}; explained, but no configuration has it"
        if explained and not self.row.get("why"):
            return f"{where}: `why` is missing"
        if "key" in self.row and not self.pairs:
            return f"{where}: no command has it"
        if "key" not in self.row and not (self.row.get("why") or self.row.get("test")):
            return f"{where}: has neither a key nor `why` nor `test`"
        return None


def load_ledger() -> dict[str, Any]:
    """`ledger.yaml`, whose head says what is in it."""
    return yaml.safe_load(Path(__file__).with_name("ledger.yaml").read_text(encoding="utf-8"))


def load_run(ledger: Mapping[str, Any], entry: Mapping[str, Any], config: Path = CONFIG) -> Run:
    """One entry of the ledger's `runs`; `config` is the folder of configurations."""
    given = entry.get("given", {})
    theirs = {name: value for name, (_, value) in ledger["options"][entry["program"]].items()} | given
    if "--model" in theirs:
        theirs |= ledger["models"][theirs["--model"]][1]
    stage = resolve_stage(load_settings(config / entry["file"]), entry["stage"])
    return Run(entry["label"], entry["program"], theirs, _resolved(stage))


def _resolved(stage: StageConfig) -> dict[str, Any]:
    """Every key of a stage and, as `architecture.…`, of its network."""
    values, network = stage.model_dump(mode="json"), stage.architecture.to_dict()
    values["model"] |= {key: network[key] for key in values["model"] if key in network}
    return flat(values | {"architecture": network})


def compare(row: Mapping[str, Any], runs: Sequence[Run]) -> Comparison:
    """The row in each of the runs whose program has it."""
    option, pairs = row.get("option", row["name"]), {}
    for run in runs if "key" in row else ():
        if "theirs" in row or option in run.theirs:
            theirs = row["theirs"] if "theirs" in row else run.theirs[option]
            pairs[run.label] = theirs, _meant(row, run, theirs), run.ours[row["key"]]
    return Comparison(row, pairs)


def _meant(row: Mapping[str, Any], run: Run, value: Any) -> Any:
    """Their value in our terms."""
    value = value[row["item"]] if "item" in row else value
    value = next((ours for theirs, ours in row.get("as", []) if theirs == value), value)
    value = value * row["times"] if "times" in row else value
    return value + run.theirs[row["plus"]] if "plus" in row else value


def comparisons(ledger: Mapping[str, Any], config: Path = CONFIG) -> dict[str, list[Comparison]]:
    """All rows, by list of the ledger."""
    runs = [load_run(ledger, entry, config) for entry in ledger["runs"]]
    found = {}
    for name in LISTS:
        mine = [run for run in runs if (run.program == "report") == (name == "report")]
        found[name] = [compare(row, mine) for row in ledger[name]]
    return found


def ledger_text() -> str:
    """docs/recipe.md."""
    ledger = load_ledger()
    runs = [
        [f"`{e['file']}`, {e['stage']}", e["label"], f"`{e['program']}`", _given(e.get("given", {})), e.get("note", "")]
        for e in ledger["runs"]
    ]
    lines = [
        "# The recipe, line by line",
        "",
        "Generated from `cswin/config/ledger.yaml` and the configurations by `cswin config --ledger`; do not edit.",
        "",
        *(f"- {name}: {text}" for name, text in ledger["documents"].items()),
        "",
        "`equal`: the values of all configurations were compared; a step without a key names the test that shows that it is equal.",
        "",
        *_table(["configuration, stage", "name below", "program", "given in the command", "note"], runs),
        "",
    ]
    for name, rows in comparisons(ledger).items():
        cells = [_cells(ledger, name, comparison) for comparison in rows]
        head = ["theirs", "where", "value", "here", "value", "equal, or why not"]
        lines += [f"## {LISTS[name]}", "", *_table(head, cells), ""]
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown without padding: the cells are long."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _given(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_shown(value)}" for key, value in options.items())


def _cells(ledger: Mapping[str, Any], part: str, comparison: Comparison) -> list[str]:
    row = comparison.row
    name, why = row["name"], row.get("why", "")
    programs = {program: of for program, of in ledger["options"].items() if (program == "report") == (part == "report")}
    lines = {program: options[name] for program, options in programs.items() if name in options}
    where = row.get("where") or ", ".join(f"{program}:{line}" for program, (line, _) in lines.items())
    theirs = _by_value({label: theirs for label, (theirs, _, _) in comparison.pairs.items()})
    if not comparison.pairs and lines:
        theirs = _by_value({program: value for program, (_, value) in lines.items()})
    ours = _by_value({label: ours for label, (_, _, ours) in comparison.pairs.items()})
    test = f"`{row['test'].rsplit('::')[-1]}`" if "test" in row else ""
    only_here = comparison.different and all(theirs is None for theirs, _ in comparison.different)
    verdict = "" if only_here else "differs" if comparison.different else "equal" if comparison.pairs or not why else ""
    text = "; ".join(filter(None, (": ".join(filter(None, (verdict, why))), test)))
    key = f"`{row['key']}`" if "key" in row else ""
    return [f"`{name}`" if lines else name, where.replace("report:", "section "), theirs, key, ours, text]


def _by_value(values: Mapping[str, Any]) -> str:
    """Each value once, with the labels that have it unless all have."""
    texts: dict[str, list[str]] = {}
    for label, value in values.items():
        texts.setdefault(_shown(value), []).append(label)
    if len(texts) == 1:
        return next(iter(texts))
    return "; ".join(f"{text} ({', '.join(labels)})" for text, labels in texts.items())


def _shown(value: Any) -> str:
    if value in (None, ""):
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
