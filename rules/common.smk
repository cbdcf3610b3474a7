"""What the rules share: the checked settings, paths, and small functions for inputs and parameters."""

import json
from pathlib import Path

from snakemake.exceptions import WorkflowError

from cswin.atomic import atomic_path
from cswin.config.overrides import typed_overrides
from cswin.config.resolve import dump, expectations, parse_settings, resolve_stage
from cswin.errors import UserError

config = typed_overrides(config, workflow.config_settings.config)
try:
    SETTINGS = parse_settings(config)
except UserError as error:
    raise WorkflowError(f"The configuration is refused:\n{error}") from None

RUN = f"results/{SETTINGS.run}"
DATA = f"{SETTINGS.data.directory}/{SETTINGS.data.name}"
STAGES = list(SETTINGS.stages)
RUNTIME = f"{RUN}/config/runtime.yaml"


def stage_text(wildcards):
    """The resolved configuration of a stage; a change elsewhere in the configuration does not change it."""
    return dump(resolve_stage(SETTINGS, wildcards.stage))


def previous_checkpoint(stage):
    """What a stage starts from: a list with one checkpoint, or none."""
    before = resolve_stage(SETTINGS, stage).previous
    if before:
        return [f"{RUN}/{before}/checkpoint.safetensors"]
    return [SETTINGS.pretrained] if SETTINGS.pretrained else []


def previous_record(stage):
    """The record of the stage before: small, compared by content."""
    before = resolve_stage(SETTINGS, stage).previous
    return [f"{RUN}/{before}/record.json"] if before else []


def optional(flag, values):
    """`flag value` on a command line where there is a value, else nothing."""
    values = values if isinstance(values, (list, tuple)) else [values]
    return " ".join(f"{flag} {value}" for value in values if value is not None)


def images_folder():
    """Where the images are, train/ and val/ by class."""
    return (
        SETTINGS.data.folder if SETTINGS.data.source == "folder" else f"{DATA}/images"
    )


def images_receipt():
    """The note that extraction is complete; a folder of one's own has none."""
    return [] if SETTINGS.data.source == "folder" else [f"{DATA}/extracted.json"]


def promised():
    """What the manifest is checked against, and the order of its rows."""
    data = SETTINGS.data
    values = {
        "--expect-train": data.expect_train,
        "--expect-val": data.expect_val,
        "--expect-classes": data.classes,
        "--on-bad-image": data.on_bad_image,
        "--report": f"{DATA}/bad_images.csv",
        "--seed": data.seed,
    }
    return " ".join(
        optional(flag, value) for flag, value in values.items() if value is not None
    )


def shard_receipts(wildcards):
    """Receipts of all shards; how many there are is known once the images are counted."""
    summary = json.loads(Path(checkpoints.shard_plan.get().output[0]).read_text())
    return [
        f"{DATA}/shards/{split}-{shard:05d}.json"
        for split, facts in summary["splits"].items()
        for shard in range(facts["shards"])
    ]


def guide():
    """What a person sees first."""
    return (
        f"run {SETTINGS.run}: {', '.join(STAGES)}; table: results/final_acc.csv, everything else: {RUN}/\n"
        "one stage again: --forcerun train_<stage>; only so far: --until train_<stage>; plan: -n; other run: --configfile FILE"
    )


def write_runtime():
    """Write the settings that only change speed where the jobs read them, before any job starts.

    It is not the output of a job, because a job that has to run hides from Snakemake's plan all jobs behind it, and those that take
    its output as ancient() are then left out. A changed number of workers would, in the middle of a stage, train nothing and be a
    success.
    """
    Path(RUNTIME).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(RUNTIME) as temporary:
        temporary.write_text(dump(SETTINGS.runtime), encoding="utf-8")


def accept_stages():
    """The workflow has succeeded: repeating one of its stages from now on means from nothing. A stage that it did not look at
    (another target was asked for) may have been killed at its last moment and goes on from its state.
    """
    from cswin.train.state import accept

    looked_at = {job.rule.name for job in workflow.dag.jobs}
    for stage in STAGES:
        if f"train_{stage}" in looked_at:
            accept(Path(RUN, stage, "state"))
