"""Settings: generated files do not drift, every shipped configuration is valid, errors say what to do."""

import json
import re
from copy import deepcopy
from pathlib import Path

import jsonschema
import pytest
import yaml
from recipes import DIGITS, recipe

from cswin.cli import main
from cswin.config.data import Data
from cswin.config.inputs import pretrained_file
from cswin.config.overrides import typed_overrides
from cswin.config.reference import json_schema, reference_text, schema_text
from cswin.config.resolve import dump, load_settings, load_stage, parse_settings, resolve_stage
from cswin.config.settings import STAGE_SECTIONS, Augment, Evaluation, Model, Optimizer, Schedule, Settings
from cswin.data.sources.registry import SOURCES
from cswin.errors import UserError
from cswin.estimate import count_images, estimate_stage
from cswin.model.variants import VARIANTS, variant
from cswin.profile import profile

CONFIG = Path(__file__).parents[2] / "config"
FILES = sorted(p for p in CONFIG.rglob("*.yaml"))


def changed(path: str, value, values: dict | None = None) -> dict:
    """The digits' configuration, or `values`, with one key set; its sections are made where they are not there."""
    section = values = deepcopy(values or recipe(DIGITS))
    *parents, key = path.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section[key] = value
    return values


def test_generated_files_do_not_drift():
    assert (CONFIG / "schema.json").read_text() == schema_text()
    assert (CONFIG / "README.md").read_text() == reference_text()


def test_every_setting_is_documented():
    def walk(kind):
        for name, field in kind.model_fields.items():
            assert field.description, name
            if hasattr(field.annotation, "model_fields"):
                walk(field.annotation)

    walk(Settings)


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_shipped_configurations_are_valid(file):
    settings = load_settings(file)
    jsonschema.validate(yaml.safe_load(file.read_text()), json_schema())
    for name in settings.stages:
        assert resolve_stage(settings, name).architecture.num_classes == settings.data.classes


def test_no_value_of_the_recipe_is_a_default():
    """But for what a named architecture says and what has no effect in the first stage."""
    optional = {"image_size", "in_channels", "split_size", "num_heads"}
    for kind in (Model, Augment, Optimizer, Schedule, Evaluation):
        assert {name for name, field in kind.model_fields.items() if not field.is_required()} <= optional


def test_usual_values_are_those_of_the_reports_configuration():
    report = yaml.safe_load((CONFIG / "imagenet/report_small_224.yaml").read_text())
    for section, kind in {"data": Data, **STAGE_SECTIONS}.items():
        for key, field in kind.model_fields.items():
            if field.is_required():
                assert field.examples == [report[section][key]], f"{section}.{key}"


@pytest.mark.parametrize("section", [*STAGE_SECTIONS, "data"])
def test_each_key_that_is_left_out_is_named_with_its_usual_value(section):
    required = {
        key: field for key, field in Settings.model_fields[section].annotation.model_fields.items() if field.is_required()
    }
    values = recipe(DIGITS)
    for key in required:
        del values[section][key]
    with pytest.raises(UserError) as error:
        parse_settings(values)
    lines = str(error.value).splitlines()
    assert len(lines) == len(required)
    for line, (key, field) in zip(lines, required.items(), strict=True):
        assert line.startswith(f"{section}.{key}: missing; usual: {json.dumps(field.examples[0])}; ")
        values[section][key] = recipe(DIGITS)[section][key]
    del values[section]
    with pytest.raises(UserError, match=f"^{section}: missing; every configuration shows this section"):
        parse_settings(values)


def test_a_later_stage_says_what_it_carries():
    stages = recipe(DIGITS)["stages"]
    del stages["stage2"]["carry"], stages["stage3"]["carry_weights"]
    with pytest.raises(UserError) as error:
        parse_settings(recipe(DIGITS, stages=stages))
    assert "stages.stage2.carry: missing; usual: weights" in str(error.value)
    assert "stages.stage3.carry_weights: missing; usual: raw" in str(error.value)
    stages["stage2"]["carry"] = stages["stage3"]["carry"] = "all"
    parse_settings(recipe(DIGITS, stages=stages))


def test_the_schema_asks_for_the_same_keys():
    values = recipe(DIGITS)
    jsonschema.validate(values, json_schema())
    for section in STAGE_SECTIONS:
        key = next(key for key, field in STAGE_SECTIONS[section].model_fields.items() if field.is_required())
        part = recipe(DIGITS)
        del part[section][key]
        with pytest.raises(jsonschema.ValidationError, match=f"'{key}' is a required property"):
            jsonschema.validate(part, json_schema())


def test_runs_have_names_of_their_own():
    names = [load_settings(file).run for file in FILES]
    assert len(set(names)) == len(names)


def head(file) -> str:
    """The comment above the first key."""
    return file.read_text().split("\nrun:")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_the_head_of_each_file_says_command_cost_and_expectation(file):
    settings, text = load_settings(file), head(file)
    command = "results/final_acc.csv" if file == DIGITS else f"--configfile {file.relative_to(CONFIG.parent)}"
    assert f"\n#   snakemake --cores 8 {command}" in text
    assert "\n# Expected: " + (f"{settings.paper_top1} %" if settings.paper_top1 and len(settings.stages) == 1 else "") in text
    for stage in settings.stages.values():
        assert stage.reported_top1 is None or f"{stage.reported_top1:.2f}" in text
    if settings.data.expect_train is None:
        assert (
            f"{6e-9 * sum(part.macs for part in profile(resolve_stage(settings, 'finetune').architecture)):.2f} GFLOP per"
            in text
        )
        return
    images = count_images(settings.data)
    stages = [estimate_stage(resolve_stage(settings, name), settings.runtime, images) for name in settings.stages]
    trained, validated = sum(stage.trained for stage in stages), sum(stage.validated for stage in stages)
    forward = 2e-9 * sum(part.macs for part in profile(resolve_stage(settings, next(iter(settings.stages))).architecture))
    total = forward * (3 * trained + validated)
    assert (
        f"# Cost:     {total:.2e} GFLOP: {trained:,} training images x {3 * forward:.2f}, "
        f"{validated:,} validation images x {forward:.2f};"
    ) in text
    for hours, rate in re.findall(r"([\d.]+) hours at (\d+) images/s", text):
        assert float(hours) == pytest.approx(trained / int(rate) / 3600, abs=0.05)
    assert file == DIGITS or "hours at 602 images/s" in text


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_the_comment_beside_the_architecture_is_right(file):
    arch = variant(load_settings(file).model.arch)
    embed, depth, stripes, heads = re.search(
        r"arch: .*embed (\d+), depth ([\d,]+), stripes ([\d,]+), heads ([\d,]+);", file.read_text()
    ).groups()
    parameters = re.search(r"arch: .*; ([\d,]+) parameters", file.read_text())[1]
    assert int(embed) == arch.embed_dim and int(parameters.replace(",", "")) == sum(part.parameters for part in profile(arch))
    for text, values in ((depth, arch.depth), (stripes, arch.split_size), (heads, arch.num_heads)):
        assert text == ",".join(map(str, values))


@pytest.mark.parametrize("file", sorted(CONFIG.glob("imagenet/*.yaml")), ids=lambda p: p.stem)
def test_each_value_of_an_imagenet_recipe_has_its_source_beside_it(file):
    section, recipe_lines = "", []
    for line in file.read_text().splitlines():
        if line and line[0] not in " #":
            section = line.split(":")[0]
        if line.startswith("seed:") or (section in STAGE_SECTIONS and line.startswith("  ")):
            recipe_lines.append(line)
    assert len(recipe_lines) == 1 + sum(f.is_required() for kind in STAGE_SECTIONS.values() for f in kind.model_fields.values())
    assert [line for line in recipe_lines if " # " not in line] == []


def test_the_difference_of_two_configurations_is_a_table(tmp_path, capsys):
    report = CONFIG / "imagenet/report_small_224.yaml"
    assert main(["config", "--diff", str(report), str(report.with_name("report_small_224_a2.yaml"))]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["key", "run", "optimizer.amp_dtype"] and lines[2][1:] == ['"float16"', '"bfloat16"']
    other = tmp_path / "other.yaml"
    values = recipe(DIGITS, optimizer={"clip_norm": None}, runtime={"keep_states": 3})
    values["stages"]["stage2"]["schedule"]["cool_lr"] = 1.0e-6
    other.write_text(yaml.safe_dump(values))
    assert main(["config", "--diff", str(DIGITS), str(other)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [["optimizer.clip_norm", "5.0", "null"], ["stages.stage2.schedule.cool_lr", "-", "1e-06"]]
    assert main(["config", "--diff", str(DIGITS), str(DIGITS)]) == 0 and "say the same" in capsys.readouterr().out
    other.write_text("run: [")
    assert main(["config", "--diff", str(DIGITS), str(other)]) == 2 and "not valid YAML" in capsys.readouterr().err


def test_a_configuration_for_every_named_variant():
    used = {load_settings(file).model.arch for file in FILES}
    assert used == set(VARIANTS)


def test_report_schedule_is_the_specifications():
    settings = load_settings(CONFIG / "imagenet/report_small_224.yaml")
    stages = [resolve_stage(settings, name) for name in settings.stages]
    assert [(s.start_epoch, s.epochs) for s in stages] == [(0, 320), (320, 380), (380, 500)]
    phases = [(s.schedule.cool_length, s.schedule.tail_length, s.schedule.over_length) for s in stages]
    assert phases == [(20, 0, 0), (80, 0, 0), (80, 60, 60)]
    assert {s.schedule.cosine_length(s.epochs) for s in stages} == {300}
    first = stages[0]
    assert (first.optimizer.amp_level, first.optimizer.global_batch, first.optimizer.clip_norm) == ("O1", 1024, 5.0)
    assert (first.optimizer.ema_decay, first.optimizer.weight_decay, first.model.drop_path) == (0.99992, 0.05, 0.4)
    assert first.architecture.split_size == (2, 2, 7, 7)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_paper_s_configurations_draw_the_filter_and_erase_after_mixing(file):
    """timm 0.3.4 as the authors call it; the report does otherwise."""
    for stage in (settings := load_settings(file)).stages:
        augment = resolve_stage(settings, stage).augment
        wanted = ("random", "after_mixing") if file.stem.startswith("paper_") else ("bicubic", "before_mixing")
        assert (augment.interpolation, augment.erase) == wanted


def test_resolved_stage_survives_its_file(tmp_path):
    config = resolve_stage(load_settings(CONFIG / "config.yaml"), "stage2")
    (tmp_path / "stage2.yaml").write_text(dump(config))
    assert load_stage(tmp_path / "stage2.yaml") == config


def test_unrelated_settings_do_not_change_a_resolved_stage():
    values = recipe(DIGITS)
    before = dump(resolve_stage(parse_settings(values), "stage2"))
    values["runtime"]["workers"] = 5
    values["paper_top1"] = 98.5
    values["stages"]["stage3"]["schedule"]["tail_lr"] = 2.0e-6
    assert dump(resolve_stage(parse_settings(values), "stage2")) == before
    values["stages"]["stage2"]["optimizer"] = {"weight_decay": 0.1}
    assert dump(resolve_stage(parse_settings(values), "stage2")) != before


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("runtime.accumulation", 3, ["optimizer.global_batch: 32", "32 x 1 x 3 = 96"]),
        ("augment.mixup_group", 7, ["augment.mixup_group: 7", "even"]),
        ("augment.scale", [0.5, 0.1], ["augment.scale", "ascending"]),
        ("data.archive", "x.tar", ["data.archive: 'x.tar' has no effect with source 'digits'"]),
        ("data.source", "archive", ["data.archive: missing", "needs its path"]),
        ("stages.stage1.schedule", {"base_rl": 1.0}, ["stages.stage1.schedule.base_rl: unknown", "'base_lr'"]),
        ("stages.stage1.epochs", 0, ["stages.stage1.epochs: 0"]),
        ("optimizer.keep_bn_fp32", True, ["optimizer.keep_bn_fp32: unknown key"]),
        ("optimizer.momentum", 0.9, ["optimizer.momentum: unknown key"]),
        ("seed", "42", ["seed: '42'", "valid integer"]),
        ("model.arch", "cswin_tiny", ["arch: 'cswin_tiny' is not known", "cswin_64_12211_tiny_224"]),
        ("run", "a/b", ["run: 'a/b'"]),
    ],
)
def test_refusals_name_key_value_and_remedy(path, value, named):
    with pytest.raises(UserError) as error:
        parse_settings(changed(path, value))
    for words in named:
        assert words in str(error.value)


def test_all_problems_are_told_at_once():
    values = recipe(DIGITS, optimzer={"amp_level": "O0"}, schedule={"base_lr": "1e-3"}, augment={"hflip": 2})
    values["stages"]["stage2"]["schedule"]["coool_lr"] = 1.0e-5
    values["stages"]["stage3"]["optimizer"] = {"weight_decay": -1}
    with pytest.raises(UserError) as error:
        parse_settings(values)
    keys = {line.split(":")[0] for line in str(error.value).splitlines()}
    assert keys == {
        "optimzer", "schedule.base_lr", "augment.hflip", "stages.stage2.schedule.coool_lr", "stages.stage3.optimizer.weight_decay",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("base_lr", "did you mean schedule.base_lr?"),
        ("optimizer.label_smoothng", "did you mean augment.label_smoothing?"),
        ("stages.stage1.epoch", "did you mean 'epochs'?"),
        ("stages.stage2.schedule.weight_decay", "did you mean optimizer.weight_decay?"),
        ("runtime.device", "did you mean 'devices'?"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(path, hint):
    with pytest.raises(UserError) as error:
        parse_settings(changed(path, 1))
    assert str(error.value) == f"{path}: unknown key (value 1); {hint}"


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("1e-3", "write 1.0e-3"),
        ("5E3", "write 5.0e+3"),
        ("1.5e3", "write 1.5e+3"),
        ("-.5e2", "write -0.5e+2"),
        ("'0.001'", "it is text: write 0.001 without quotes"),
        ("1e-3x", None),
        ("lots", None),
    ],
)
def test_numbers_that_yaml_takes_for_text_are_told_from_mistakes(text, remedy):
    value = yaml.safe_load(text)
    with pytest.raises(UserError) as error:
        parse_settings(changed("schedule.base_lr", value))
    message = str(error.value)
    assert message.startswith(f"schedule.base_lr: {value!r} is refused: input should be a valid number")
    assert message.endswith(remedy) if remedy else message.endswith("valid number")
    if remedy and "needs a decimal point" in message:
        assert yaml.safe_load(remedy.removeprefix("write ")) == float(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [("beta1", 0), ("beta2", 0), ("beta1", 1), ("eps", 0), ("loss_scale", float("inf")), ("weight_decay", float("nan"))],
)
def test_values_with_which_no_step_can_be_done_are_refused(key, value):
    with pytest.raises(UserError, match=rf"^optimizer\.{key}: {value} is refused: input should be (greater|less|a finite)"):
        parse_settings(changed(f"optimizer.{key}", value))


@pytest.mark.parametrize(
    ("runtime", "remedy"),
    [
        (
            {"devices": 3},
            "set runtime.devices to one of 1, 2, 4, 8, 16, 32, or change optimizer.global_batch to a multiple of 3",
        ),
        ({"devices": 6, "nodes": 2}, "set runtime.devices to one of 2, 4, 8, 16, 32, or change"),
        ({"devices": 2}, "set runtime.batch_size to 16 and runtime.accumulation to 1"),
        ({"devices": 4, "batch_size": 5}, "set runtime.batch_size to 4 and runtime.accumulation to 2"),
        ({"accumulation": 3}, "set runtime.batch_size to 32 and runtime.accumulation to 1"),
        (
            {"devices": 64},
            "no batch_size and no accumulation make 32 on 64 devices: set runtime.devices to one of 1, 2, 4, 8, 16, 32, or",
        ),
    ],
)
def test_the_remedy_for_a_batch_names_values_that_help(runtime, remedy):
    with pytest.raises(UserError) as error:
        parse_settings(recipe(DIGITS, runtime=runtime))
    assert remedy in str(error.value)
    found = {key: int(value) for key, value in re.findall(r"runtime\.(\w+) to (\d+)", str(error.value))}
    offered = re.search(r"runtime\.devices to one of ([\d, ]+\d)", str(error.value))
    for devices in map(int, offered[1].split(", ")) if offered else ():
        parse_settings(recipe(DIGITS, runtime=runtime | {"devices": devices, "batch_size": 32 // devices, "accumulation": 1}))
    if found:
        parse_settings(recipe(DIGITS, runtime=runtime | found))


def test_stages_with_different_batches_are_told_so():
    values = changed("stages.stage2.optimizer", {"global_batch": 64})
    with pytest.raises(
        UserError, match="optimizer.global_batch: 32, 64 in different stages; runtime is the same in all stages"
    ):
        parse_settings(values)


@pytest.mark.parametrize("key", ["data.directory", "data.folder", "pretrained", "runtime.host_file"])
def test_a_tilde_is_the_home_directory_in_every_path(key, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    values = recipe(DIGITS, data={"source": "folder", "folder": "images"}, runtime={"devices": 2, "nodes": 2, "batch_size": 16})
    found = parse_settings(changed(key, "~/x", values))
    for part in key.split("."):
        found = getattr(found, part)
    assert found == "/somewhere/x"
    with pytest.raises(
        UserError, match=rf"^{key}: '~no-such-user/x' is refused: .*home directory for ~no-such-user; write the path"
    ):
        parse_settings(changed(key, "~no-such-user/x", values))


def test_published_weights(monkeypatch):
    """Their name is checked; they lie in a folder of the workflow, or where the environment says."""
    settings = parse_settings(changed("pretrained", "weights:cswin_tiny_224"))
    monkeypatch.delenv("CSWIN_WEIGHTS", raising=False)
    assert pretrained_file(settings) == "weights/cswin_tiny_224.safetensors"
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("CSWIN_WEIGHTS", "~/cache")
    assert pretrained_file(settings) == "/somewhere/cache/cswin_tiny_224.safetensors"
    assert pretrained_file(parse_settings(changed("pretrained", "a/b.ckpt"))) == "a/b.ckpt"
    with pytest.raises(
        UserError, match="^pretrained: weights:cswin_tny: no such weights are published; one of: weights:cswin_tiny_224, "
    ):
        parse_settings(changed("pretrained", "weights:cswin_tny"))


@pytest.mark.parametrize("source", ["archive", "ilsvrc2012"])
def test_a_tilde_in_the_paths_of_archives(source, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    data = parse_settings(recipe(DIGITS, data={"source": source, **dict.fromkeys(SOURCES[source].inputs, "~/a.tar")})).data
    assert {getattr(data, key) for key in SOURCES[source].inputs} == {"/somewhere/a.tar"}


def test_a_key_given_twice_is_refused(tmp_path):
    text = DIGITS.read_text()
    file = tmp_path / "twice.yaml"
    file.write_text(text.replace("  base_lr: 0.001", "  base_lr: 0.001\n  base_lr: 0.002"))
    line = 1 + text[: text.index("  base_lr:")].count("\n")
    with pytest.raises(
        UserError, match=f"twice.yaml: line {line + 1}: 'base_lr' is given twice, first in line {line}; keep one"
    ):
        load_settings(file)
    file.write_text(text + "\nschedule: {}\n")
    with pytest.raises(UserError, match="'schedule' is given twice"):
        load_settings(file)
    file.write_text(text.replace("schedule:", "schedule: &common", 1) + "\nx: {<<: *common, base_lr: 1}\n")
    with pytest.raises(UserError, match="^[^\n]*\nx: unknown key"):  # a merged key may be given again
        load_settings(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"run: \xff", "not valid UTF-8 at byte 5; save the file as UTF-8"),
        (b"run: [", "not valid YAML"),
        (b"", "is empty"),
        (b"{[1, 2]: 3, [1, 2]: 4}", "not valid YAML"),
    ],
)
def test_files_that_hold_no_configuration(tmp_path, content, words):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=f"(?s)config.yaml:.*{words}"):
        load_settings(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="missing.yaml: No such file"):
        load_settings(tmp_path / "missing.yaml")


def test_stages_are_ordered_by_their_start():
    values = recipe(DIGITS)
    values["stages"] = dict(reversed(values["stages"].items()))
    assert list(parse_settings(values).stages) == ["stage1", "stage2", "stage3"]


def test_overrides_are_typed_as_in_a_file():
    values = {"a": {"x": "0.5", "y": 1}, "b": "text", "c": ["1", "2.0"]}
    overrides = {"a": {"x": "0.5"}, "b": "null", "c": ["1", "2.0"]}
    assert typed_overrides(values, overrides) == {"a": {"x": 0.5, "y": 1}, "b": None, "c": [1, 2.0]}
