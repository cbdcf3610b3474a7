# CSWin Transformer training: archives -> manifest -> MindRecord -> stages -> evaluation -> results/final_acc.csv
from snakemake.utils import min_version, validate

from cswin.config.files import read_yaml
from cswin.workflow.internals import Internals, without_traceback

min_version("9.0")
SNAKEMAKE = Internals(workflow)

# --configfile replaces the default configuration; the two are not merged. Snakemake's own errors would not name the file.
if not SNAKEMAKE.config_files:
    without_traceback(read_yaml, "config/config.yaml")

    configfile: "config/config.yaml"


include: "rules/common.smk"


validate(config, "config/schema.json", set_default=False)


report: "rules/report/workflow.rst"


localrules:
    all,
    final_acc,
    stage_config,
    expectations_config,
    stages_config,
    table,
    card,
    curves,
    throughput,
    classes,
    predictions,
    samples,
    table_page,
    configuration_page,
    data_page,
    provenance_page,


rule all:
    default_target: True
    input:
        LAST.table_csv,
        [stage.checkpoint for stage in STAGES],
        PICTURES,
        PAGES,


include: f"rules/sources/{'digits' if SETTINGS.data.source == 'digits' else 'files'}.smk"
include: "rules/data.smk"
include: "rules/weights.smk"
include: "rules/train.smk"
include: "rules/results.smk"
include: "rules/pictures.smk"
include: "rules/pages.smk"


onstart:
    without_traceback(SESSION.start)


onsuccess:
    SESSION.succeed()
