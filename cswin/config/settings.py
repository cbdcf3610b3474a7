"""Every setting: its type, bounds and meaning.

The recipe has no defaults: a configuration shows every value of it (`usual`). Conveniences have defaults. The JSON schema that
Snakemake validates against (config/schema.json) and the reference page (config/README.md) are generated from these classes by
`cswin config`; a test fails when they drift.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from cswin.config.paths import FilePath
from cswin.data.sources.registry import SOURCES
from cswin.layout import RESULTS, DataLayout, RunLayout

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Epochs = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Triple = Annotated[list[float], Field(min_length=3, max_length=3)]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]


Source = Literal[tuple(SOURCES)]


def partial(section: str) -> Any:
    """A mapping with some of the keys of a section; merged over the section and then validated like it."""
    return Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-section": section})]


def usual(value: Any, description: str, **more: Any) -> Any:
    """A key of the recipe: it has no default. `value` is that of config/imagenet/report_small_224.yaml; a refusal names it."""
    return Field(examples=[value], description=description, **more)


class Section(BaseModel):
    """A group of settings: unknown keys are errors, nothing is converted in silence."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(Section):
    """Where the images come from and how they are stored."""

    name: Name = usual("imagenet", description="Name of the dataset; its files live in `<directory>/<name>/`.")
    directory: FilePath = Field("data", description="Folder of all datasets.")
    source: Source = usual(
        "archive",
        description="`digits`: the embedded handwritten digits. `archive`: one tar or tar.gz with "
        "train/ and val/ by class (the report's imagenet.tar.gz). `ilsvrc2012`: the three official files. `folder`: an "
        "extracted folder with train/ and val/ by class.",
    )
    archive: FilePath | None = Field(None, description="The archive of source `archive`.")
    train_archive: FilePath | None = Field(None, description="ILSVRC2012_img_train.tar, of source `ilsvrc2012`.")
    val_archive: FilePath | None = Field(None, description="ILSVRC2012_img_val.tar, of source `ilsvrc2012`.")
    devkit: FilePath | None = Field(None, description="ILSVRC2012_devkit_t12.tar.gz, of source `ilsvrc2012`.")
    folder: FilePath | None = Field(None, description="The folder of source `folder`.")
    classes: Count = usual(1000, description="Number of classes that the dataset promises.")
    expect_train: Count | None = Field(None, description="Training images promised; another count is refused. Empty: any.")
    expect_val: Count | None = Field(None, description="Validation images promised; another count is refused. Empty: any.")
    shard_mb: Count = Field(1024, description="Target size of a MindRecord shard in MiB.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of the order in which rows are stored.")
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail",
        description="What to do with files that do not decode: `fail` lists "
        "them and stops, `skip` lists them and leaves them out.",
    )
    keep_images: bool = Field(True, description="Keep the extracted images after conversion.")

    @property
    def layout(self) -> DataLayout:
        """Where the dataset's files are."""
        return DataLayout(Path(self.directory, self.name))

    @property
    def images(self) -> Path:
        """The folder with the images, train/ and val/ by class."""
        return Path(self.folder) if self.source == "folder" else self.layout.images


class Model(Section):
    """The network."""

    arch: str = usual(
        "cswin_64_24322_small_224_report", description="Name of the architecture; `cswin profile --help` lists them."
    )
    image_size: Count | None = Field(
        None, description="Side of the input in pixels, divisible by 32. Empty: the architecture's."
    )
    in_channels: Literal[1, 3] | None = Field(None, description="1: greyscale, 3: RGB. Empty: the architecture's.")
    split_size: Annotated[list[int], Field(min_length=4, max_length=4)] | None = Field(
        None, description="Stripe widths of the four stages. Empty: the architecture's."
    )
    num_heads: Annotated[list[int], Field(min_length=4, max_length=4)] | None = Field(
        None, description="Attention heads of the four stages. Empty: the architecture's."
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] = usual(0.4, description="Drop path rate of the last block; linear from 0.")


class Augment(Section):
    """What happens to a training image."""

    scale: Range = usual([0.08, 1.0], description="Area of the random resized crop as a share of the image, from and to.")
    ratio: Range = usual([0.75, 4 / 3], description="Aspect ratio of the random resized crop, from and to.")
    interpolation: Literal["bicubic", "bilinear", "random"] = usual(
        "bicubic",
        description="Resampling filter of training and evaluation. `random` (the paper's code): one of the two, drawn for each crop "
        "and for each geometric operation of RandAugment; evaluation is bicubic then.",
    )
    hflip: Fraction = usual(0.5, description="Probability of a horizontal flip.")
    rand_augment: str | None = usual("rand-m9-mstd0.5-inc1", description="RandAugment in timm's string syntax. Empty: none.")
    erase_prob: Fraction = usual(0.25, description="Probability of random erasing.")
    erase_mode: Literal["pixel", "const", "rand"] = usual(
        "pixel", description="Fill: normal noise per pixel, zero, or one colour."
    )
    erase_count: Count = usual(1, description="Largest number of erased boxes.")
    erase: Literal["before_mixing", "after_mixing"] = usual(
        "before_mixing",
        description="`before_mixing` (the report): each image is normalised and erased, then the batch is mixed. `after_mixing` (the "
        "paper's code): 8-bit images are mixed and rounded, then normalised, then erased.",
    )
    mixup: NonNegative = usual(0.8, description="Alpha of mixup's Beta distribution; 0: no mixup.")
    cutmix: NonNegative = usual(1.0, description="Alpha of cutmix's Beta distribution; 0: no cutmix.")
    mixup_prob: Fraction = usual(1.0, description="Probability that a batch (or element) is mixed at all.")
    switch_prob: Fraction = usual(0.5, description="Probability of cutmix where both are on.")
    mixup_mode: Literal["batch", "pair", "elem"] = usual("batch", description="Draw once per group, per pair, or per element.")
    mixup_group: Count = usual(
        128,
        description="Images that share one draw in mode `batch` and are mixed with their reverse: "
        "the report's batch per device. Part of the recipe, so that batches are the same for any number of devices.",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = usual(0.1, description="Label smoothing.")
    mean: Triple = usual([0.485, 0.456, 0.406], description="Mean of the normalisation, RGB, of values in 0 to 1.")
    std: Triple = usual([0.229, 0.224, 0.225], description="Standard deviation of the normalisation, RGB.")


class Optimizer(Section):
    """AdamW, clipping, EMA and mixed precision."""

    global_batch: Count = usual(
        1024,
        description="Images per optimizer step over all devices. Must equal runtime.batch_size x "
        "runtime.devices x runtime.accumulation; nothing is scaled in silence.",
    )
    beta1: Decay = usual(0.9, description="Decay of the first moment.")
    beta2: Decay = usual(0.999, description="Decay of the second moment.")
    eps: Positive = usual(1e-8, description="Added to the root of the second moment.")
    weight_decay: NonNegative = usual(0.05, description="Decoupled weight decay of parameters with 2 or more dimensions.")
    clip_norm: Positive | None = usual(5.0, description="Largest global gradient norm. Empty: no clipping.")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = usual(
        0.99992, description="Decay of the weights' moving average per step."
    )
    amp_level: Literal["O0", "O1", "O2"] = usual(
        "O1",
        description="Mixed precision: O0 none, O1 products in low precision, O2 the stream between them too.",
        json_schema_extra={"remedy": "write O1 with the letter O; YAML reads 01 as the number 1"},
    )
    amp_dtype: Literal["float16", "bfloat16"] = usual("float16", description="The low precision format.")
    loss_scale: Positive = usual(1024.0, description="Loss scale at the start (float16 only); an overflow halves it.")
    loss_scale_window: Count = usual(2000, description="Steps without overflow after which the loss scale doubles.")
    max_bad_steps: Count = usual(20, description="Steps in a row without a finite loss or gradient after which training stops.")


class Schedule(Section):
    """Learning rate: warm-up, cosine, then up to three constant phases. The cosine phase, warm-up included, lasts
    epochs - cool_length - tail_length - over_length."""

    base_lr: Positive = usual(0.001, description="Learning rate at the end of warm-up.")
    min_lr: NonNegative = usual(0.00001, description="Learning rate at the end of the cosine.")
    warmup_length: Epochs = usual(20, description="Epochs of linear warm-up.")
    warmup_lr: NonNegative = usual(0.000001, description="Learning rate at the first step of warm-up.")
    cosine_from: Literal["warmup", "start"] = usual(
        "warmup",
        description="Where the cosine begins: after warm-up (the report), "
        "or at epoch 0, so that the peak stays below base_lr (the paper's code).",
    )
    per: Literal["step", "epoch"] = usual("step", description="Change the learning rate at each step or at each epoch.")
    cool_length: Epochs = usual(0, description="Epochs of the first constant phase.")
    cool_lr: NonNegative = usual(0.00001, description="Its learning rate.")
    tail_length: Epochs = usual(0, description="Epochs of the second constant phase.")
    tail_lr: NonNegative = usual(0.000001, description="Its learning rate.")
    over_length: Epochs = usual(0, description="Epochs of the third constant phase.")
    over_lr: NonNegative = usual(0.0000001, description="Its learning rate.")

    def cosine_length(self, epochs: int) -> int:
        """Epochs of the cosine phase, warm-up included, in a stage that ends at `epochs`."""
        return epochs - self.cool_length - self.tail_length - self.over_length


class Evaluation(Section):
    """Validation while training and at the end of a stage."""

    crop_ratio: Annotated[float, Field(gt=0, le=1)] = usual(
        0.9, description="Centre crop: the shorter side is resized to int(image_size / crop_ratio)."
    )
    every: Count = usual(1, description="Epochs between two validations; the last epoch of a stage is always validated.")
    select: Literal["best", "last"] = usual("best", description="Which epoch becomes the stage's checkpoint.")
    select_by: Literal["raw", "ema"] = usual("ema", description="Whose top-1 decides which epoch is the best.")
    select_on: Literal["val", "minival"] = usual(
        "val",
        description="The images that decide: the validation set (optimistic: it is "
        "also reported) or a part of the training set held out for it.",
    )
    minival_images: Count = usual(10000, description="Size of the held-out part, with select_on minival.")


STAGE_SECTIONS = {"schedule": Schedule, "optimizer": Optimizer, "augment": Augment, "model": Model, "evaluation": Evaluation}


class Stage(Section):
    """One training stage. Any key of schedule, optimizer, augment, model and evaluation can be changed for a stage alone."""

    start_epoch: Epochs = Field(description="First epoch on the whole schedule; must be the end of the stage before.")
    epochs: Count = Field(description="End of the stage on the whole schedule (exclusive).")
    carry: Literal["weights", "all"] | None = Field(
        None,
        description="What the stage takes from the one before: weights only (the "
        "report; moments, EMA and loss scale start anew) or everything, as if training had not been cut. Must be given after the "
        "first stage.",
    )
    carry_weights: Literal["raw", "ema"] | None = Field(
        None, description="Which weights of the stage before. Must be given with carry: weights."
    )
    reported_top1: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="Top-1 that the report gives, per cent."
    )
    schedule: partial("Schedule") = Field({}, description="Keys of schedule for this stage alone.")
    optimizer: partial("Optimizer") = Field({}, description="Keys of optimizer for this stage alone.")
    augment: partial("Augment") = Field({}, description="Keys of augment for this stage alone.")
    model: partial("Model") = Field({}, description="Keys of model for this stage alone (drop_path).")
    evaluation: partial("Evaluation") = Field({}, description="Keys of evaluation for this stage alone.")


class Runtime(Section):
    """What changes speed, not results: never a reason to train again."""

    device_target: Literal["CPU", "Ascend"] = Field("Ascend", description="Where the network runs.")
    devices: Count = Field(8, description="Devices over all nodes; each has a process of its own.")
    nodes: Count = Field(1, description="Machines that share the devices equally; on each the same command is started once.")
    host_file: FilePath | None = Field(
        None,
        description="Where Slurm does not tell the nodes: a file with an address a line, the first of which "
        "leads (docs/devices.md).",
    )
    master_port: Annotated[int, Field(ge=1024, le=65535)] | None = Field(
        None,
        description="Port on the first of several nodes where the processes meet. Empty: from the Slurm job's number, or 8118.",
    )
    batch_size: Count = Field(128, description="Images per device and forward pass.")
    accumulation: Count = Field(1, description="Forward passes per optimizer step.")
    eval_batch_size: Count = Field(128, description="Images per device and forward pass in evaluation.")
    workers: Annotated[int, Field(ge=1, le=512)] = Field(8, description="Workers that decode and augment, per device.")
    worker_kind: Literal["thread", "process"] = Field(
        "process", description="Threads (little memory) or processes (many cores)."
    )
    prefetch: Count = Field(4, description="Batches made ahead of the device.")
    log_every: Count = Field(50, description="Steps between two reads of the loss from the device.")
    tensorboard: bool = Field(True, description="Write an event file for TensorBoard into each stage's folder.")
    graph_cache: bool = Field(
        False, description="Keep compiled graphs in the stage's folder, so that going on compiles nothing (docs/devices.md)."
    )
    jit_backend: Literal["ms_backend", "GE"] | None = Field(
        None, description="Compiler of the network (docs/ascend.md). Empty: GE on the first Ascend 910, ms_backend elsewhere."
    )
    jit_level: Literal["O0", "O1"] | None = Field(
        None, description="O1 lets ms_backend fuse operators on Ascend (experimental). Empty: O0."
    )
    bind_cores: bool = Field(
        False, description="Bind each of several processes to cores of its own near its device, its data workers included."
    )
    agree_every: Count = Field(
        5, description="Steps between two agreements of several devices on whether to stop; each waits for the device."
    )
    save_minutes: Positive = Field(
        15.0, description="Minutes between two saves of the training state; each epoch saves as well."
    )
    keep_states: Annotated[int, Field(ge=2)] = Field(3, description="Training states kept.")
    lease_timeout: Positive = Field(300.0, description="Seconds without heartbeat after which another host's lease is dead.")


class Settings(Section):
    """A whole configuration file."""

    run: Name = Field(description="Name of the run: everything it makes is in results/<run>/.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = usual(42, description="Seed of everything random.")
    pretrained: FilePath | None = Field(
        None,
        description="Checkpoint from which the first stage starts (fine-tuning). The head is "
        "replaced where the number of classes differs.",
    )
    paper_top1: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="Published top-1 in per cent, drawn as a line and compared with."
    )
    data: Data = Field(description=Data.__doc__)
    model: Model = Field(description=Model.__doc__)
    augment: Augment = Field(description=Augment.__doc__)
    optimizer: Optimizer = Field(description=Optimizer.__doc__)
    schedule: Schedule = Field(description=Schedule.__doc__)
    evaluation: Evaluation = Field(description=Evaluation.__doc__)
    stages: Annotated[dict[Name, Stage], Field(min_length=1)] = Field(
        description="The training stages by name; their order is that of start_epoch."
    )
    runtime: Runtime = Field(Runtime(), description=Runtime.__doc__)

    @property
    def layout(self) -> RunLayout:
        """Where the run's files are, below the workflow's folder."""
        return RunLayout(RESULTS / self.run)
