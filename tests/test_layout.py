"""Where files are is promised to users and to older runs; and one module knows it."""

import re
from pathlib import Path

from conftest import ROOT

from cswin.layout import LAST, DataLayout, RunLayout, WeightsLayout

RUN, DATA, WEIGHTS = RunLayout(Path("results/a")), DataLayout(Path("data/b")), WeightsLayout(Path("weights"))
PLACES = {
    "results/final_acc.csv": LAST.table_csv,
    "results/a/README.md": RUN.card,
    "results/a/final_acc.json": RUN.table_json,
    "results/a/table.html": RUN.page("table"),
    "results/a/curves.png": RUN.picture("curves"),
    "results/a/config/s.yaml": RUN.config("s"),
    "results/a/config/runtime.yaml": RUN.runtime,
    "results/a/config/expectations.yaml": RUN.expectations,
    "results/a/suite.csv": RUN.suite,
    "results/a/logs/train_s.log": RUN.log("train_s"),
    "results/a/s/checkpoint.safetensors": RUN.stage("s").checkpoint,
    "results/a/s/record.json": RUN.stage("s").record,
    "results/a/s/state": RUN.stage("s").state,
    "results/a/s/history.jsonl": RUN.stage("s").history,
    "results/a/s/attempts.jsonl": RUN.stage("s").attempts,
    "results/a/s/evaluation.json": RUN.stage("s").evaluation,
    "results/a/s/predictions.npz": RUN.stage("s").predictions,
    "results/a/s/classes.png": RUN.stage("s").picture("classes"),
    "results/a/{stage}/per_class.csv": RUN.stage("{stage}").per_class,  # as rules name it
    "data/b/manifest.csv.gz": DATA.rows,
    "data/b/manifest.json": DATA.manifest,
    "data/b/dataset.json": DATA.dataset,
    "data/b/converted.json": DATA.converted,
    "data/b/extracted.json": DATA.extracted,
    "data/b/folder.json": DATA.fingerprint,
    "data/b/shards/1024MiB": DATA.shards(1024),
    "results/a/config/weights.json": RUN.weights,
    "weights/cswin_tiny_224.safetensors": WEIGHTS.checkpoint("cswin_tiny_224"),
    "weights/cswin_tiny_224.pth.sha256": WEIGHTS.checksum("cswin_tiny_224"),
}


def test_where_files_are():
    assert {name: path.as_posix() for name, path in PLACES.items()} == {name: name for name in PLACES}


def test_names_are_spelled_once():
    """No other module and no rule joins such a name to a folder."""
    names = "|".join({re.escape(Path(name).name) for name in PLACES if Path(name).suffix} - {r"README\.md"})
    joined = re.compile(rf"""/ ["'](?:{names})["']|}}/(?:{names})["']|Path\(.*["'](?:{names})["']""")
    for file in [*ROOT.glob("cswin/**/*.py"), ROOT / "Snakefile", *ROOT.glob("rules/**/*.smk")]:
        if file != ROOT / "cswin/layout.py":
            assert joined.findall(file.read_text()) == [], file
