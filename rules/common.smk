"""What the rules share: the checked settings, paths, and small functions for inputs and parameters."""

import math
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from cswin.config.files import read_yaml
from cswin.config.inputs import missing_inputs
from cswin.atomic import atomic_path
from cswin.config.overrides import typed_overrides
from cswin.config.resolve import dump, expectations, parse_settings, resolve_stage
from cswin.data.sources.fingerprint import folder_changed
from cswin.distributed.slurm import find_partition
from cswin.errors import UserError
from cswin.report.headline import outcome
from cswin.report.jobs import shorten_output
from cswin.run.repeat import accept, ask_to_repeat, is_damaged

config = typed_overrides(config, workflow.config_settings.config)
try:
    for file in workflow.configfiles:
        read_yaml(file)  # Snakemake's reader takes the last one of two equal keys
    SETTINGS = parse_settings(config)
except UserError as error:
    raise WorkflowError(f"The configuration is refused:\n{error}") from None
# Snakemake's own message names the file, this one the key and the remedy.
for line in missing_inputs(SETTINGS):
    print(line, file=sys.stderr)

RUN = f"results/{SETTINGS.run}"
DATA = f"{SETTINGS.data.directory}/{SETTINGS.data.name}"
STAGES = list(SETTINGS.stages)
IMAGES = {
    "train": SETTINGS.data.expect_train or 1_281_167,
    "val": SETTINGS.data.expect_val or 50_000,
}
NODES = SETTINGS.runtime.nodes
DEVICES_PER_NODE = SETTINGS.runtime.devices // NODES
RUNTIME = f"{RUN}/config/runtime.yaml"

# How jobs depend on the data. A job that has to run hides all jobs behind it from Snakemake's plan, and those that depend on it only
# through ancient() are then left out, whatever other reason they have to run: the command succeeds and they were not run. So a file
# that another job makes is ancient() only beside another output of the same job, that is compared by content. CONVERTED is that
# output; it says which images were converted, whatever the size of the shards. (tests/workflow/test_plans.py checks every job.)
DATASET = f"{DATA}/dataset.json"
CONVERTED = f"{DATA}/converted.json"
SHARDS = f"{DATA}/shards/{SETTINGS.data.shard_mb}MiB"
FOLDER = Path(DATA, "folder.json")  # the fingerprint of a folder of one's own
CONVERSIONS = 8  # shards that are converted at once, by one job


def fit_to_partition():
    """Ask Slurm before the first submission: refuse what it would refuse, ask for no more time and cores than it gives.

    Only with a profile for a cluster (it names `device_gres`), where Snakemake itself runs, and where Slurm answers.
    """
    settings = workflow.resource_settings
    defaults = settings.default_resources
    if not workflow.is_main_process or not defaults or "device_gres" not in defaults:
        return None
    key = "slurm_partition" if "slurm_partition" in defaults else "partition"
    try:
        partition = find_partition(defaults[key].raw if key in defaults else None)
        if partition and SETTINGS.runtime.device_target != "CPU":
            partition.require_devices(defaults["device_gres"].raw, DEVICES_PER_NODE)
    except UserError as error:
        raise WorkflowError(str(error)) from None
    if partition is None:
        return None
    capped = []
    asked = defaults["runtime"] if "runtime" in defaults else None
    if partition.minutes and asked and not asked.is_evaluable():
        if asked.value > partition.minutes:
            defaults["runtime"] = partition.minutes
            capped.append(f"{partition.minutes} min")
    if partition.cores:
        most = settings.max_threads or partition.cores
        settings.max_threads = min(most, partition.cores)
        if DEVICES_PER_NODE * SETTINGS.runtime.workers > partition.cores:
            capped.append(f"{partition.cores} cores")
    if capped:
        print(
            f"partition {partition.name}: jobs ask for at most {' and '.join(capped)}, its limit",
            file=sys.stderr,
        )
    return partition


PARTITION = fit_to_partition()


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


def configuration(stage):
    """A stage's configuration file, as an input function, which Snakemake calls when it plans.

    A damaged checkpoint is then marked like a file of a killed job: Snakemake notices a missing output by itself, but not a changed one.
    """

    def file(wildcards):
        if workflow.is_main_process and is_damaged(Path(RUN, stage)):
            workflow.dag.forcefiles.add(f"{RUN}/{stage}/checkpoint.safetensors")
        return f"{RUN}/config/{stage}.yaml"

    return file


def optional(flag, values):
    """`flag value` on a command line where there is a value, else nothing."""
    values = values if isinstance(values, (list, tuple)) else [values]
    return " ".join(f"{flag} {value}" for value in values if value is not None)


def images_folder():
    """Where the images are, train/ and val/ by class."""
    return (
        SETTINGS.data.folder if SETTINGS.data.source == "folder" else f"{DATA}/images"
    )


def images_receipt(wildcards):
    """The note that extraction is complete. A folder of one's own has none: the manifest is made again when names, sizes or dates of
    its files have changed since (marked as in `configuration`). A dry run looks too, and writes nothing.
    """
    if SETTINGS.data.source != "folder":
        return [f"{DATA}/extracted.json"]
    if workflow.is_main_process and folder_changed(Path(SETTINGS.data.folder), FOLDER):
        workflow.dag.forcefiles.add(f"{DATA}/manifest.json")
    return []


def cleanup():
    """Extracted images are removed after the conversion unless they are kept."""
    return optional(
        "--remove-images", None if SETTINGS.data.keep_images else f"{DATA}/images"
    )


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
        "--fingerprint": FOLDER if data.source == "folder" else None,
    }
    return " ".join(
        optional(flag, value) for flag, value in values.items() if value is not None
    )


def run_pictures():
    """All pictures of the run."""
    by_stage = [
        f"{RUN}/{stage}/{name}.png"
        for stage in STAGES
        for name in ("classes", "predictions", "samples")
    ]
    return [f"{RUN}/curves.png", f"{RUN}/throughput.png", *by_stage]


def run_pages():
    """All pages of the run."""
    return [
        f"{RUN}/{name}.html"
        for name in ("table", "configuration", "data", "provenance")
    ]


def minutes(images, per_second):
    """Run time to ask for where `images` are handled at no less than `per_second`: a quarter of an hour is for all the rest."""
    asked = 15 + math.ceil(images / per_second / 60)
    return min(asked, PARTITION.minutes or asked) if PARTITION else asked


def on_devices(devices, nodes=1):
    """What a job asks for to compute on `devices` of each of `nodes`; nothing is named that does not apply.

    mem_mb: host memory of a node; per device its process, with batches and a copy of the state, and the loader's workers.
    gres: the devices under the site's name for them (`device_gres` in the profile). CPUs have none.
    mpi, nodes, tasks: one launcher on each node.
    """
    runtime, names = (
        SETTINGS.runtime,
        workflow.resource_settings.default_resources or {},
    )
    asked = {"mem_mb": devices * (8000 + 600 * runtime.workers)}
    if runtime.device_target != "CPU":
        asked["gres"] = (
            f"{names['device_gres'].raw if 'device_gres' in names else 'npu'}:{devices}"
        )
    if nodes > 1:
        asked |= {"mpi": "srun", "nodes": nodes, "tasks": nodes}
    return asked


def launcher(wildcards, resources, threads):
    """The prefix of the training command: one `cswin train` on each of several nodes."""
    if "mpi" not in resources.keys():
        return ""
    return (
        f"{resources.mpi} --nodes={resources.nodes} --ntasks={resources.tasks} --ntasks-per-node=1 "
        f"--cpus-per-task={threads} --kill-on-bad-exit=1"
    )


def time_limit(wildcards, resources):
    """The trainer ends by itself before the job's time is over. What is kept back is for the start and the end of the job."""
    if "runtime" not in resources.keys():
        return ""
    seconds = 60 * resources.runtime
    return f"--max-runtime {seconds - min(120, seconds // 20)}"


def guide():
    """What a person sees first."""
    return (
        f"run {SETTINGS.run}: {', '.join(STAGES)}; table: results/final_acc.csv, everything else: {RUN}/\n"
        "one stage again: --forcerun train_<stage>; only so far: --until train_<stage>; plan: -n; other run: --configfile FILE"
    )


def write_runtime():
    """Write the settings that only change speed where the jobs read them, before any job starts.

    It is not the output of a job, because no job may run again when it changes, and a job cannot wait for another one without that
    (see DATASET above).
    """
    Path(RUNTIME).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(RUNTIME) as temporary:
        temporary.write_text(dump(SETTINGS.runtime), encoding="utf-8")


def ask_for_repetitions():
    """Tell the trainer of which stages the repetition was asked for (--forcerun, -f, -F). All other training jobs decide by content: a
    complete stage with the same identity is not trained again, its files are made again from its state.
    """
    forced = {
        job.rule.name
        for job in workflow.dag.needrun_jobs()
        if workflow.dag.reason(job).forced
    }
    for stage in STAGES:
        ask_to_repeat(Path(RUN, stage), f"train_{stage}" in forced)


def accept_stages():
    """The workflow has succeeded: to force one of its stages from now on means from nothing. A stage that it did not look at
    (another target was asked for) may have been killed at its last moment and goes on from its state.
    """
    for stage in STAGES:
        if made(f"train_{stage}"):
            accept(Path(RUN, stage, "state"))


def made(rule):
    """Whether the rule's job was among those that Snakemake looked at, so that its output is there and up to date."""
    return any(job.rule.name == rule for job in workflow.dag.jobs)
