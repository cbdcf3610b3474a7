"""What the rules share: checked settings, where files are, what jobs ask for. The work behind it is in cswin/workflow."""

from snakemake.exceptions import WorkflowError

from cswin.config.resolve import dump, expectations, resolve_stage
from cswin.errors import UserError
from cswin.layout import LAST, PLAN, SUITE
from cswin.suite.sets import IMAGES as TEST_IMAGES
from cswin.workflow.job_lines import shorten_output
from cswin.workflow.resources import launcher, options, time_limit
from cswin.workflow.session import Session


def told(step, *arguments):
    """Do a step; what a user has to put right is shown by Snakemake without a traceback."""
    try:
        return step(*arguments)
    except UserError as error:
        raise WorkflowError(str(error)) from None


shorten_output(SNAKEMAKE)
SESSION = told(Session, SNAKEMAKE, config)
config = SESSION.config
SETTINGS, JOBS = SESSION.settings, SESSION.resources

# Paths are those of cswin/layout.py. Snakemake's pathvars (`<run>/…`) would spell names again, and are not replaced in params.
RUN, DATA = SESSION.run, SESSION.data
STAGE = RUN.stage("{stage}")
STAGES = [RUN.stage(name) for name in SETTINGS.stages]
ANY_STAGE = "|".join(SETTINGS.stages)
IMAGES, RUNTIME = str(SETTINGS.data.images), str(RUN.runtime)
SHARDS = DATA.shards(SETTINGS.data.shard_mb)
PICTURES = [RUN.picture("curves"), RUN.picture("throughput")] + [
    stage.picture(name)
    for stage in STAGES
    for name in ("classes", "predictions", "samples")
]
PAGES = [RUN.page(name) for name in ("table", "configuration", "data", "provenance")]

# How jobs depend on the data. A job that has to run hides all jobs behind it from Snakemake's plan, and those that depend on it only
# through ancient() are then left out, whatever other reason they have to run: the command succeeds and they were not run. So a file
# that another job makes is ancient() only beside another output of the same job, that is compared by content: DATA.dataset beside
# DATA.converted. (tests/workflow/test_plans.py checks every job.)

CONVERSIONS = 8  # shards that are converted at once, by one job
VAL = SETTINGS.data.expect_val or 50_000  # for times; ImageNet's where nothing tells
SUITE_IMAGES = sum(TEST_IMAGES.values())
ALL = VAL + (SETTINGS.data.expect_train or 1_281_167)
CLEANUP = options(remove_images=None if SETTINGS.data.keep_images else DATA.images)
