"""Pictures and pages of a run that was really trained, and Snakemake's report of it in a real browser."""

import base64
import html.parser
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from browser import browser, requested, require_browser
from test_pictures import check_picture

from cswin.config.resolve import load_runtime, load_stage
from cswin.data.loader.batches import TrainLoader
from cswin.data.store.dataset import Dataset
from cswin.errors import UserError
from cswin.predictions import Predictions
from cswin.report.pages import attempts, configuration_page, data_page
from cswin.report.pictures.predictions import draw_predictions
from cswin.report.pictures.samples import first_steps, sample_loader
from cswin.report.run import load_run

pytestmark = pytest.mark.slow
STAGES = ["stage1", "stage2", "stage3"]


@pytest.fixture(scope="module")
def folder(finished_run):
    return finished_run.path / "results" / "digits"


@pytest.fixture(scope="module")
def dataset(finished_run):
    return Dataset.load(finished_run.path / "data" / "digits" / "dataset.json")


def test_all_pictures_are_there(folder):
    by_stage = [folder / stage / f"{name}.png" for stage in STAGES for name in ("classes", "predictions", "samples")]
    for picture in (folder / "curves.png", folder / "throughput.png", *by_stage):
        check_picture(picture)


def test_samples_are_those_of_the_training(folder, dataset):
    config, runtime = load_stage(folder / "config" / "stage2.yaml"), load_runtime(folder / "config" / "runtime.yaml")
    shown, trained = sample_loader(dataset, config), TrainLoader(dataset, config, runtime)
    steps = first_steps(shown)
    assert "not mixed" in steps and len(steps) > 1
    for kind, step in steps.items():
        [few] = next(iter(shown.epoch(config.start_epoch, step)))
        [whole] = next(iter(trained.epoch(config.start_epoch, step)))
        assert len(few.images) == 16 < len(whole.images)
        assert np.array_equal(few.images, whole.images[few.columns])
        assert np.array_equal(few.targets, whole.targets[few.columns])
        assert (few.targets.max(1) < 0.9).any() == (kind != "not mixed")


def test_predictions_of_other_images_are_refused(folder, dataset, tmp_path):
    labels = dataset.index("val").labels[::-1].copy()
    other = Predictions(labels, labels[:, None], np.ones(len(labels)), np.arange(len(labels)))
    config = load_stage(folder / "config" / "stage1.yaml")
    with pytest.raises(UserError, match="evaluate the stage again"):
        draw_predictions(other, dataset, config, tmp_path / "x.png", title="", weights="")


class Tables(html.parser.HTMLParser):
    """The tables of a page: a list of rows each, a row a list of texts."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.cell = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.cell:
            self.tables[-1][-1][-1] += data


def test_table_page_shows_the_csv_to_the_letter(folder):
    _, table = Tables((folder / "table.html").read_text()).tables
    csv = pd.read_csv(folder / "final_acc.csv", dtype=str, keep_default_na=False).replace("", "–")
    assert table[0] == ["", *csv.stage]
    assert table[1:] == [[name, *csv[name]] for name in csv.columns if name != "stage"]


def test_results_page_begins_with_top1_and_the_curves(folder):
    page = (folder / "table.html").read_text()
    headline = Tables(page).tables[0]
    assert headline[0] == ["stage", "weights", "top-1, %", "95 % interval", "reported, %", "published, %"]
    table = pd.read_csv(folder / "final_acc.csv")
    for row, line in zip(table.itertuples(), headline[1:], strict=True):
        assert line == [
            row.stage, "EMA", f"{row.top1_ema:.2f}", f"{row.top1_ema_low:.2f} to {row.top1_ema_high:.2f}", "–",
            f"99.00 ({row.top1_ema - 99:+.2f})",
        ]  # fmt: skip
    curves = base64.b64encode((folder / "curves.png").read_bytes()).decode()
    assert page.index("<table>") < page.index(f"data:image/png;base64,{curves}") < page.rindex("<table>")


def test_configuration_page_names_what_differs(folder):
    stages = load_run(folder, STAGES)
    page = configuration_page("digits", stages, load_runtime(folder / "config" / "runtime.yaml"))
    differs, every, runtime = Tables(page).tables
    keys = {row[0] for row in differs[1:]}
    files = [yaml.safe_load((folder / "config" / f"{stage}.yaml").read_text()) for stage in STAGES]
    resolved = pd.json_normalize(files).astype(str)
    assert keys == {key for key in resolved if resolved[key].nunique() > 1} >= {"stage", "epochs", "schedule.cool_length"}
    values = {row[0]: row[3] for row in every}
    assert values["optimizer.eps"] == str(files[2]["optimizer"]["eps"])
    assert values["augment.scale"] == ", ".join(map(str, files[2]["augment"]["scale"]))
    assert ["worker_kind", "thread"] in runtime


def test_data_page_counts_and_escapes(dataset):
    summary = json.loads((dataset.path.parent / "manifest.json").read_text())
    summary["class_names"][3] = "<script>alert(3)</script>"
    page = data_page(summary, {"train": 1, "val": 1})
    assert "<script>" not in page
    assert "0 images of train are also in val; 0 repeat another image of train, 0 of val." in page
    assert "also in val" not in data_page(summary | {"duplicates": None}, {"train": 1, "val": 1})
    counts, _, by_class = Tables(page).tables
    assert counts[1][:2] == ["train", "1,437"] and counts[2][:2] == ["val", "360"]
    labels = np.bincount(dataset.index("train").labels)
    assert [row[1] for row in by_class[1:]] == [str(n) for n in labels]
    assert by_class[4][0] == "<script>alert(3)</script>"


def test_attempts_are_told_one_by_one(folder):
    [stage] = load_run(folder, ["stage1"])
    again = [{"attempt": "x", "event": "start", "time": "T1", "host": "h", "versions": {"python": "3"}},
             {"attempt": "x", "event": "resume", "time": "T2", "step": 7}]  # fmt: skip
    first, second = attempts(type(stage)(**{**vars(stage), "attempts": stage.attempts + again}))
    assert first["reason"] == "complete" and first["versions.mindspore"] == "2.8.0" and first["from step"] == 0
    assert second == {"started": "T1", "host": "h", "versions.python": "3", "resumed from step": 7}  # still running: no end


@pytest.fixture(scope="module")
def report(finished_run, tmp_path_factory):
    """Snakemake's report of the finished run."""
    require_browser()
    path = tmp_path_factory.mktemp("report") / "report.html"
    finished_run.snakemake("--report", str(path))
    return path


def test_report_in_a_browser(report, folder, tmp_path):
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def rows(count):
        """The rows of a category's list, once it is shown: the description of one of them has fewer."""
        return wait.until(lambda d: [r for r in [d.find_elements(By.CSS_SELECTOR, "nav tbody tr")] if len(r) == count])[0]

    def press(element):
        """A click that hits whatever moves: the report's menu glides."""
        driver.execute_script("arguments[0].click()", element)

    def click(text):
        press(wait.until(lambda d: d.find_elements(By.XPATH, f"//nav//*[text()='{text}']"))[0])

    def new_picture():
        """The picture that is shown and was not before; loaded."""
        found = driver.find_elements(By.CSS_SELECTOR, "#app div > img[src^='data:image/png']")
        found = [image for image in found if image.get_attribute("src") not in pictures]
        return found[0] if found and driver.execute_script("return arguments[0].complete", found[0]) else None

    def new_page():
        """The text of the page that is shown and was not before."""
        for frame in driver.find_elements(By.CSS_SELECTOR, "#app iframe"):
            driver.switch_to.frame(frame)
            text = " ".join(body.text for body in driver.find_elements(By.TAG_NAME, "body"))  # none yet while it loads
            driver.switch_to.default_content()
            if text and text not in pages.values():
                return text
        return None

    pictures, pages, captions = {}, {}, {}
    with browser(tmp_path / "profile") as driver:
        wait = WebDriverWait(driver, 60, ignored_exceptions=[StaleElementReferenceException, NoSuchElementException])
        driver.get("data:text/html,<img src='http://127.0.0.1:9/x.png'>")
        assert "http://127.0.0.1:9/x.png" in requested(driver)  # what is asked for over a network is noticed
        driver.get_log("browser")
        driver.get(report.as_uri())
        results = wait.until(lambda d: d.execute_script("return results"))
        for category, count in (("1. Results", 4), ("2. Stages", 9), ("3. Origin", 3)):
            click(category)
            for number in range(count):
                name = rows(count)[number].text
                look, about = rows(count)[number].find_elements(By.TAG_NAME, "a")
                if name == "Table, as CSV":
                    assert look.get_attribute("href").startswith("data:text/csv")
                else:
                    press(look)
                    if category == "3. Origin" or name == "Table":
                        pages[name] = wait.until(lambda d: new_page())
                    else:
                        picture = wait.until(lambda d: new_picture())
                        width = driver.execute_script("return arguments[0].naturalWidth", picture)
                        pictures[picture.get_attribute("src")] = width
                press(rows(count)[number].find_elements(By.TAG_NAME, "a")[1])
                captions[name] = wait.until(
                    lambda d: [t for t in [d.find_element(By.CSS_SELECTOR, "#app nav").text] if "DESCRIPTION" in t]
                )[0]
                click(category)
            click("Results")
        asked = [url for url in requested(driver) if not url.startswith(("file:", "data:", "blob:", "chrome:"))]
        trouble = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert asked == [] and trouble == []
    embedded = {entry["data_uri"] for entry in results.values() if entry["mime_type"] == "image/png"}
    assert len(embedded) == 11 and pictures == dict.fromkeys(embedded, 1280)
    table = pd.read_csv(folder / "final_acc.csv", dtype=str)
    assert set(pages) == {"Table", "Configuration", "Data", "Provenance"}
    for column in ("top1_raw", "top1_ema_high", "checkpoint_sha256"):
        assert f"{column} {' '.join(table[column])}" in " ".join(pages["Table"].split())
    assert "schedule.base_lr 0.001 0.001 0.001" in " ".join(pages["Configuration"].split())
    assert "1,437" in pages["Data"] and "360" in pages["Data"]
    assert json.loads((folder / "stage3" / "record.json").read_text())["sha256"] in pages["Provenance"]
    assert len(captions) == 16 and all("DESCRIPTION" in text for text in captions.values())
    assert "Training samples of stage stage2" in captions["stage2 Training samples"]
