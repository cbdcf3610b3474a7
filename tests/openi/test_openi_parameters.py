"""The parameters of a job on the platform: each of the report's understood, or refused with the new way to say it."""

import json
from pathlib import Path

import pytest

from cswin.config.resolve import load_settings, parse_settings
from cswin.errors import UserError
from cswin.openi.job import main
from cswin.openi.parameters import REFUSED, RENAMED, parse_parameters

OUT = "--train_url=obs://bucket/out"
# The report's YAML, key by key, and the parameters of its jobs and of eval.py.
REPORT_YAML = [
    "data_url",
    "set",
    "num_classes",
    "mix_up",
    "cutmix",
    "auto_augment",
    "interpolation",
    "re_prob",
    "re_mode",
    "re_count",
    "mixup_prob",
    "switch_prob",
    "mixup_mode",
    "crop_ratio",
    "optimizer",
    "lr_scheduler",
    "base_lr",
    "min_lr",
    "warmup_length",
    "warmup_lr",
    "cool_length",
    "cool_lr",
    "tail_length",
    "tail_lr",
    "over_length",
    "over_lr",
    "amp_level",
    "keep_bn_fp32",
    "beta",
    "is_dynamic_loss_scale",
    "use_global_norm",
    "clip_global_norm_value",
    "enable_ema",
    "ema_decay",
    "loss_scale",
    "weight_decay",
    "momentum",
    "label_smoothing",
    "epochs",
    "batch_size",
    "num_parallel_workers",
    "device_target",
    "drop_path_rate",
    "patch_size",
    "embed_dim",
    "depth",
    "split_size",
    "num_heads",
    "mlp_ratio",
]
REPORT_JOBS = ["arch", "run_openi", "device_num", "pretrained", "start_epoch", "train_url", "device_id", "config"]


class TestParameters:
    def test_the_reports_first_job_is_the_reports_configuration(self):
        job = parse_parameters(
            ["--arch=cswin_64_24322_small_224", "--run_openi=True", "--device_num=8", "--data_url=obs://b/imagenet/", OUT], {}
        )
        settings = parse_settings(job.values)
        assert settings == load_settings(Path("config/imagenet/report_small_224.yaml"))
        assert (job.data, job.train_url) == ([("obs://b/imagenet/", "imagenet")], "obs://bucket/out")

    def test_urls_from_the_environment_and_arguments_before_them(self):
        environment = {"data_url": "/dataset", "train_url": "/output"}
        job = parse_parameters([], environment)
        assert (job.data, job.train_url) == ([("/dataset", "dataset")], "/output")
        assert parse_parameters(["--train_url", "/other"], environment).train_url == "/other"
        with pytest.raises(UserError, match="train_url: missing"):
            parse_parameters([], {})

    @pytest.mark.parametrize("name", [*REPORT_YAML, *REPORT_JOBS])
    def test_each_parameter_of_the_report_is_understood_or_refused_with_the_new_way(self, name):
        known = {"data_url", "train_url", "arch", "run_openi", "device_num", "pretrained", "config"}
        assert (name in known) + (name in RENAMED) + (name in REFUSED) == 1
        if name in REFUSED:
            with pytest.raises(UserError, match=f"^{name}: 'x' is refused: .{{15,}}"):
                parse_parameters([OUT, f"--{name}=x"], {})

    def test_values_of_the_reports_yaml_are_those_of_the_configuration(self):
        report = {
            "mix_up": "0.8", "cutmix": "1.0", "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": "0.25", "base_lr": "0.001",
            "warmup_length": "20", "ema_decay": "0.99992", "clip_global_norm_value": "5.0", "drop_path_rate": "0.4", "crop_ratio": "0.9",
            "min_lr": "0.00001", "warmup_lr": "0.000001", "over_lr": "0.0000001", "label_smoothing": "0.1", "loss_scale": "1024.0",
        }  # fmt: skip
        job = parse_parameters([OUT, *(f"--{key}={value}" for key, value in report.items())], {})
        assert parse_settings(job.values) == load_settings(Path("config/imagenet/report_small_224.yaml"))

    def test_any_key_of_the_configuration(self):
        job = parse_parameters(
            [OUT, "--schedule.base_lr=0.0005", "--stages.stage2.schedule.cool_lr=2.0e-5", "--run", "lower"], {}
        )
        settings = parse_settings(job.values)
        assert settings.schedule.base_lr == 0.0005 and settings.stages["stage2"].schedule["cool_lr"] == 2.0e-5
        assert settings.run == "lower" and settings.stages["stage2"].schedule["cool_length"] == 80

    @pytest.mark.parametrize(("devices", "accumulation"), [(1, 8), (2, 4), (4, 2), (8, 1)])
    def test_devices_leave_the_batch_of_a_step(self, devices, accumulation):
        settings = parse_settings(parse_parameters([OUT, f"--device_num={devices}"], {}).values)
        assert (settings.runtime.devices, settings.runtime.accumulation) == (devices, accumulation)
        assert settings.optimizer.global_batch == 1024

    @pytest.mark.parametrize(
        ("parameters", "named"),
        [
            (["--run_openi=False"], "run snakemake"),
            (["--arch=resnet50"], "arch: 'resnet50' is not known; one of cswin_64_24322_small_224"),
            (["--bas_lr=1"], "bas_lr: unknown parameter .* did you mean 'base_lr'"),
            (["--device_num=3"], "no accumulation make 1024 on 3 devices"),
            (["--device_num=0"], "runtime.devices: 0"),
            (["--base_lr"], "base_lr: has no value"),
            (["cswin"], "'cswin': is not a parameter"),
            (['--multi_data_url={"a": 1}'], "multi_data_url"),
            (["--copy_minutes=0"], "copy_minutes"),
        ],
    )
    def test_refused(self, parameters, named):
        with pytest.raises(UserError, match=named):
            parse_parameters([OUT, *parameters], {})

    def test_wrong_values_are_refused_before_anything_is_brought_in(self, tmp_path, capsys):
        assert (
            main(["--amp_level=01", f"--train_url={tmp_path}/out", f"--work_dir={tmp_path}/work", "--data_url=obs://b/d"]) == 2
        )
        assert "write O1 with the letter O" in capsys.readouterr().err
        assert not (tmp_path / "work").exists()

    def test_several_datasets_and_models_as_the_platform_writes_them(self):
        data = json.dumps([{"dataset_url": "s3://b/1/imagenet.tar.gz", "dataset_name": "imagenet.tar.gz"},
                           {"dataset_url": "s3://b/2/pretrained.zip", "dataset_name": "pretrained.zip"}])  # fmt: skip
        models = json.dumps([{"model_url": "s3://b/m/cswin.ckpt", "model_name": "cswin.ckpt"}])
        job = parse_parameters([OUT, f"--multi_data_url={data}", f"--pretrain_url={models}", "--pretrained=cswin"], {})
        assert job.data == [("s3://b/1/imagenet.tar.gz", "imagenet.tar.gz"), ("s3://b/2/pretrained.zip", "pretrained.zip")]
        assert job.models == [("s3://b/m/cswin.ckpt", "cswin.ckpt")] and job.pretrained == "cswin"
