"""Settings: generated files do not drift, every shipped configuration is valid, errors say what to do."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from cswin.config.overrides import typed_overrides
from cswin.config.reference import json_schema, reference_text, schema_text
from cswin.config.resolve import cosine_length, dump, load_settings, load_stage, parse_settings, resolve_stage
from cswin.config.settings import Settings
from cswin.errors import UserError
from cswin.model.variants import VARIANTS

CONFIG = Path(__file__).parents[1] / "config"
FILES = sorted(p for p in CONFIG.rglob("*.yaml"))


def default() -> dict:
    return yaml.safe_load((CONFIG / "config.yaml").read_text())


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


def test_runs_have_names_of_their_own():
    names = [load_settings(file).run for file in FILES]
    assert len(set(names)) == len(names)


def test_a_configuration_for_every_named_variant():
    used = {load_settings(file).model.arch for file in FILES}
    assert used == set(VARIANTS)


def test_report_schedule_is_the_specifications():
    settings = load_settings(CONFIG / "imagenet/report_small_224.yaml")
    stages = [resolve_stage(settings, name) for name in settings.stages]
    assert [(s.start_epoch, s.epochs) for s in stages] == [(0, 320), (320, 380), (380, 500)]
    phases = [(s.schedule.cool_length, s.schedule.tail_length, s.schedule.over_length) for s in stages]
    assert phases == [(20, 0, 0), (80, 0, 0), (80, 60, 60)]
    assert {cosine_length(s.schedule, s.epochs) for s in stages} == {300}
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
    values = default()
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
    values = default()
    section = values
    *parents, key = path.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section[key] = value
    with pytest.raises(UserError) as error:
        parse_settings(values)
    for words in named:
        assert words in str(error.value)


def test_stages_are_ordered_by_their_start():
    values = default()
    values["stages"] = dict(reversed(values["stages"].items()))
    assert list(parse_settings(values).stages) == ["stage1", "stage2", "stage3"]


def test_overrides_are_typed_as_in_a_file():
    values = {"a": {"x": "0.5", "y": 1}, "b": "text", "c": ["1", "2.0"]}
    overrides = {"a": {"x": "0.5"}, "b": "null", "c": ["1", "2.0"]}
    assert typed_overrides(values, overrides) == {"a": {"x": 0.5, "y": 1}, "b": None, "c": [1, 2.0]}
