"""Every setting: its type, bounds and meaning.

The recipe has no defaults: a configuration shows every value of it (`usual`). Conveniences have defaults. `cswin config` generates
two files from these classes: the JSON schema with which Snakemake validates (config/schema.json), and the reference page
(config/README.md). A test fails if they are out of date.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cswin.config.fields import (
    Count,
    Decay,
    Epochs,
    FilePath,
    Fraction,
    Name,
    NonNegative,
    Positive,
    Range,
    Section,
    Triple,
    partial,
    usual,
)
from cswin.config.runtime import Runtime
from cswin.data.sources.members import anchor
from cswin.data.sources.recognise import recognised
from cswin.data.sources.registry import SOURCES
from cswin.layout import RESULTS, DataLayout, RunLayout

Source = Literal[tuple(SOURCES)]


class Data(Section):
    """Source and storage of the images."""

    name: Name = usual("imagenet", description="Name of the dataset; its files are in `<directory>/<name>/`.")
    directory: FilePath = Field("data", description="Folder that contains all datasets.")
    source: Source = usual(
        "archive",
        description="`archive`: one tar or tar.gz with train/ and val/, one folder per class (the report's imagenet.tar.gz). "
        "`ilsvrc2012`: the three official files. `folder`: a folder with train/ and val/, one folder per class. `digits`: the "
        "handwritten digits of scikit-learn. `kaggle`, `huggingface`, `webdataset`, `wnid_tars` (ImageNet-22K): see docs/data.md. "
        "`auto`: the one that lies at `path`.",
    )
    path: FilePath | None = Field(
        None, description="Path of a file or folder, or a pattern (`/data/*.tar`), for the five sources named last."
    )
    archive: FilePath | None = Field(None, description="Path of the archive, for source `archive`.")
    train_archive: FilePath | None = Field(None, description="Path of ILSVRC2012_img_train.tar, for source `ilsvrc2012`.")
    val_archive: FilePath | None = Field(None, description="Path of ILSVRC2012_img_val.tar, for source `ilsvrc2012`.")
    devkit: FilePath | None = Field(None, description="Path of ILSVRC2012_devkit_t12.tar.gz, for source `ilsvrc2012`.")
    folder: FilePath | None = Field(None, description="Path of the folder, for source `folder`.")
    classes: Count = usual(1000, description="Number of classes in the dataset; another number is an error.")
    expect_train: Count | None = Field(None, description="Number of training images; another one is an error. Empty: any.")
    expect_val: Count | None = Field(None, description="Number of validation images; another one is an error. Empty: any.")
    shard_mb: Count = Field(1024, description="Target size of a MindRecord shard in MiB.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of the order in which the images are stored.")
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail",
        description="Treatment of files that cannot be decoded: `fail` lists them and stops, `skip` lists them and leaves them "
        "out.",
    )
    on_duplicate: Literal["report", "fail"] = Field(
        "report",
        description="Treatment of images with equal bytes, within train or val or in both: `report` counts them, in manifest.json and "
        "on the data page; `fail` lists them and stops.",
    )
    keep_images: bool = Field(True, description="Keep the extracted images after the conversion.")

    @property
    def layout(self) -> DataLayout:
        """Where the dataset's files are."""
        return DataLayout(Path(self.directory, self.name))

    @property
    def inputs(self) -> dict[str, str]:
        """By key, the files and folders that must exist before the images are listed."""
        paths = {key: getattr(self, key) for key in SOURCES[self.source].inputs}
        return {key: anchor(path) if key == "path" else path for key, path in paths.items()}

    @property
    def own_images(self) -> Path | None:
        """A folder of one's own, whose images stay where they are; None: the images are extracted."""
        if self.source == "folder":
            return Path(self.folder)
        if self.source != "auto":
            return None
        path = Path(self.path)
        if path.is_dir():
            source = recognised(path)
            in_place = source is not None and not source.extracts
        else:  # of a folder that is gone, its fingerprint tells that it was used in place
            in_place = not path.exists() and self.layout.fingerprint.exists()
        return path if in_place else None

    @property
    def images(self) -> Path:
        """The folder with the images, train/ and val/ by class."""
        return self.own_images or self.layout.images


class Model(Section):
    """The network."""

    arch: str = usual(
        "cswin_64_24322_small_224_report", description="Name of the architecture; `cswin profile --help` lists them."
    )
    image_size: Count | None = Field(
        None, description="Side of the input image in pixels, divisible by 32. Empty: the architecture's."
    )
    in_channels: Literal[1, 3] | None = Field(None, description="1: greyscale, 3: RGB. Empty: the architecture's.")
    split_size: Annotated[list[int], Field(min_length=4, max_length=4)] | None = Field(
        None, description="Stripe widths of the four stages of the network. Empty: the architecture's."
    )
    num_heads: Annotated[list[int], Field(min_length=4, max_length=4)] | None = Field(
        None, description="Attention heads of the four stages of the network. Empty: the architecture's."
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] = usual(
        0.4, description="Drop path rate of the last block; it rises linearly from 0 at the first block."
    )


class Augment(Section):
    """Augmentation of the training images, and normalisation."""

    scale: Range = usual([0.08, 1.0], description="Smallest and largest area of the random crop, as a share of the image.")
    ratio: Range = usual([0.75, 4 / 3], description="Smallest and largest aspect ratio of the random crop.")
    interpolation: Literal["bicubic", "bilinear", "random"] = usual(
        "bicubic",
        description="Resampling filter of training and evaluation. `random` (the paper's code): bicubic or bilinear, drawn for "
        "each crop and for each geometric operation of RandAugment; evaluation is then bicubic.",
    )
    hflip: Fraction = usual(0.5, description="Probability of a horizontal flip.")
    rand_augment: str | None = usual("rand-m9-mstd0.5-inc1", description="RandAugment in timm's string syntax. Empty: none.")
    erase_prob: Fraction = usual(0.25, description="Probability of random erasing.")
    erase_mode: Literal["pixel", "const", "rand"] = usual(
        "pixel",
        description="Content of an erased box. `pixel`: normal noise for each pixel; `const`: zero; `rand`: one random colour.",
    )
    erase_count: Count = usual(1, description="Maximum number of erased boxes per image.")
    erase: Literal["before_mixing", "after_mixing"] = usual(
        "before_mixing",
        description="Order of erasing and mixing. `before_mixing` (the report): each image is normalised and erased, then the "
        "batch is mixed. `after_mixing` (the paper's code): 8-bit images are mixed and rounded, then normalised, "
        "then erased.",
    )
    mixup: NonNegative = usual(0.8, description="Alpha of mixup's Beta distribution; 0: no mixup.")
    cutmix: NonNegative = usual(1.0, description="Alpha of cutmix's Beta distribution; 0: no cutmix.")
    mixup_prob: Fraction = usual(1.0, description="Probability that a group (or pair, or image: see mixup_mode) is mixed.")
    switch_prob: Fraction = usual(0.5, description="Probability of cutmix instead of mixup, if both are enabled.")
    mixup_mode: Literal["batch", "pair", "elem"] = usual(
        "batch", description="One random draw per group, per pair of images, or per image."
    )
    mixup_group: Count = usual(
        128,
        description="Number of images that share one draw in mode `batch` and are mixed with the same images in reverse order: "
        "the report's batch per device. It is part of the recipe, so batches are the same for any number of "
        "devices.",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = usual(0.1, description="Label smoothing.")
    mean: Triple = usual([0.485, 0.456, 0.406], description="Mean for the normalisation: RGB, of values in [0, 1].")
    std: Triple = usual([0.229, 0.224, 0.225], description="Standard deviation for the normalisation: RGB.")


class Optimizer(Section):
    """AdamW, clipping, EMA and mixed precision."""

    global_batch: Count = usual(
        1024,
        description="Images per optimizer step over all devices. Must equal runtime.batch_size x runtime.devices x "
        "runtime.accumulation; nothing is scaled automatically.",
    )
    beta1: Decay = usual(0.9, description="Decay rate of the first moment.")
    beta2: Decay = usual(0.999, description="Decay rate of the second moment.")
    eps: Positive = usual(1e-8, description="Added to the square root of the second moment.")
    weight_decay: NonNegative = usual(0.05, description="Decoupled weight decay, for parameters with 2 or more dimensions.")
    clip_norm: Positive | None = usual(5.0, description="Maximum global gradient norm. Empty: no clipping.")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = usual(
        0.99992, description="Decay of the moving average (EMA) of the weights, per step."
    )
    amp_level: Literal["O0", "O1", "O2"] = usual(
        "O1",
        description="Mixed precision. O0: none; O1: matrix products and convolutions in low precision; O2: also the values "
        "between them.",
        json_schema_extra={"remedy": "write O1 with the letter O; YAML reads 01 as the number 1"},
    )
    amp_dtype: Literal["float16", "bfloat16"] = usual("float16", description="Number format of the low precision.")
    loss_scale: Positive = usual(1024.0, description="Initial loss scale (float16 only); an overflow halves it.")
    loss_scale_window: Count = usual(2000, description="Steps without overflow after which the loss scale is doubled.")
    loss_scale_max: Positive = usual(
        2.0**32,
        description="Training stops when the loss scale has grown to this: overflows are not detected, or gradients are zero.",
    )
    max_bad_steps: Count = usual(
        20, description="Consecutive steps without finite loss and gradient after which training stops."
    )


class Schedule(Section):
    """Learning rate: warmup, cosine, then up to three constant phases. Warmup and cosine together last
    epochs - cool_length - tail_length - over_length."""

    base_lr: Positive = usual(0.001, description="Learning rate at the end of the warmup.")
    min_lr: NonNegative = usual(0.00001, description="Learning rate at the end of the cosine phase.")
    warmup_length: Epochs = usual(20, description="Epochs of linear warmup.")
    warmup_lr: NonNegative = usual(0.000001, description="Learning rate at the first step of the warmup.")
    cosine_from: Literal["warmup", "start"] = usual(
        "warmup",
        description="Start of the cosine phase. `warmup`: after the warmup (the report). `start`: at epoch 0, so the maximum "
        "stays below base_lr (the paper's code).",
    )
    per: Literal["step", "epoch"] = usual("step", description="The learning rate changes at each step or at each epoch.")
    cool_length: Epochs = usual(0, description="Epochs of the first constant phase.")
    cool_lr: NonNegative = usual(0.00001, description="Its learning rate.")
    tail_length: Epochs = usual(0, description="Epochs of the second constant phase.")
    tail_lr: NonNegative = usual(0.000001, description="Its learning rate.")
    over_length: Epochs = usual(0, description="Epochs of the third constant phase.")
    over_lr: NonNegative = usual(0.0000001, description="Its learning rate.")

    def cosine_length(self, epochs: int) -> int:
        """Epochs of warmup and cosine together, in a stage that ends at `epochs`."""
        return epochs - self.cool_length - self.tail_length - self.over_length


class Evaluation(Section):
    """Validation, and the choice of the checkpoint."""

    crop_ratio: Annotated[float, Field(gt=0, le=1)] = usual(
        0.9, description="Centre crop: the shorter side is first resized to int(image_size / crop_ratio)."
    )
    every: Count = usual(1, description="Validate every so many epochs; the last epoch of a stage is always validated.")
    select: Literal["best", "last"] = usual("best", description="The epoch that becomes the checkpoint of the stage.")
    select_by: Literal["raw", "ema"] = usual("ema", description="The weights whose top-1 decides which epoch is the best.")
    select_on: Literal["val", "minival"] = usual(
        "val",
        description="The images that decide. `val`: the validation set, which is also reported, so the choice is optimistic. "
        "`minival`: a part of the training set that is held out.",
    )
    minival_images: Count = usual(10000, description="Number of images that are held out, with select_on: minival.")


STAGE_SECTIONS = {"schedule": Schedule, "optimizer": Optimizer, "augment": Augment, "model": Model, "evaluation": Evaluation}


class Stage(Section):
    """One training stage. A stage can change any key of schedule, optimizer, augment, model and evaluation for itself."""

    start_epoch: Epochs = Field(description="First epoch on the whole schedule; must be the end of the previous stage.")
    epochs: Count = Field(description="End of the stage on the whole schedule (exclusive).")
    carry: Literal["weights", "all"] | None = Field(
        None,
        description="What the stage takes from the previous one. `weights`: only the weights (the report); moments, EMA and "
        "loss scale start anew. `all`: everything, as in one uninterrupted training. Required in every stage after "
        "the first.",
    )
    carry_weights: Literal["raw", "ema"] | None = Field(
        None, description="Which weights of the previous stage. Required with carry: weights."
    )
    reported_top1: Annotated[float, Field(gt=0, le=100)] | None = Field(None, description="Top-1 in the report, per cent.")
    schedule: partial("Schedule") = Field({}, description="Keys of schedule for this stage only.")
    optimizer: partial("Optimizer") = Field({}, description="Keys of optimizer for this stage only.")
    augment: partial("Augment") = Field({}, description="Keys of augment for this stage only.")
    model: partial("Model") = Field({}, description="Keys of model for this stage only (drop_path).")
    evaluation: partial("Evaluation") = Field({}, description="Keys of evaluation for this stage only.")


class Settings(Section):
    """A whole configuration file."""

    run: Name = Field(description="Name of the run; its files are in results/<run>/.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = usual(42, description="Seed of all random numbers except data.seed.")
    pretrained: FilePath | None = Field(
        None,
        description="Checkpoint from which the first stage starts (fine-tuning). The head is replaced if the number of classes "
        "differs.",
    )
    paper_top1: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="Published top-1 in per cent, for comparison in tables and pictures."
    )
    data: Data = Field(description=Data.__doc__)
    model: Model = Field(description=Model.__doc__)
    augment: Augment = Field(description=Augment.__doc__)
    optimizer: Optimizer = Field(description=Optimizer.__doc__)
    schedule: Schedule = Field(description=Schedule.__doc__)
    evaluation: Evaluation = Field(description=Evaluation.__doc__)
    stages: Annotated[dict[Name, Stage], Field(min_length=1)] = Field(
        description="The training stages by name, in the order of start_epoch."
    )
    runtime: Runtime = Field(Runtime(), description=Runtime.__doc__)

    @property
    def layout(self) -> RunLayout:
        """Where the run's files are, below the workflow's folder."""
        return RunLayout(RESULTS / self.run)
