"""Common definitions of the rules: checked settings, paths, resources of jobs. The code is in cswin/workflow."""

from cswin.config.resolve import dump, expectations, resolve_stage
from cswin.convert.published import weights_layout
from cswin.data.sources.registry import SOURCES
from cswin.layout import LAST, PLAN, SUITE
from cswin.suite.sets import IMAGES as TEST_IMAGES
from cswin.workflow.job_lines import shorten_output
from cswin.workflow.resources import launcher, options, time_limit
from cswin.workflow.session import Session

shorten_output(SNAKEMAKE)
SESSION = without_traceback(Session, SNAKEMAKE, config)
config = SESSION.config
SETTINGS, JOBS = SESSION.settings, SESSION.resources

# Paths are those of cswin/layout.py. Snakemake's pathvars (`<run>/…`) would repeat the names, and are not replaced in params.
RUN, DATA = SESSION.run, SESSION.data
STAGE = RUN.stage("{stage}")
STAGES = [RUN.stage(name) for name in SETTINGS.stages]
FIRST = next(iter(SETTINGS.stages))
ANY_STAGE = "|".join(SETTINGS.stages)
IMAGES, RUNTIME = str(SETTINGS.data.images), str(RUN.runtime)
SHARDS = DATA.shards(SETTINGS.data.shard_mb)
PICTURES = [RUN.picture("curves"), RUN.picture("throughput")] + [
    stage.picture(name)
    for stage in STAGES
    for name in ("classes", "predictions", "samples")
]
PAGES = [RUN.page(name) for name in ("table", "configuration", "data", "provenance")]

# How jobs depend on the data. If a job has to run, Snakemake skips jobs that depend on it only through ancient(), even if they have
# another reason to run: the command succeeds without them. So an output of another job is ancient() only together with another output
# of the same job that is compared by content: DATA.dataset with DATA.converted. (tests/workflow/test_dry_runs.py checks every job.)

CONVERSIONS = 8  # shards that one job converts at the same time
VAL = SETTINGS.data.expect_val or 50_000  # for time limits; else ImageNet's
SUITE_IMAGES = sum(TEST_IMAGES.values())
ALL = VAL + (SETTINGS.data.expect_train or 1_281_167)
CLEANUP = options(remove_images=None if SETTINGS.data.keep_images else DATA.images)
