# CSWin Transformer training: archives -> manifest -> MindRecord -> stages -> evaluation -> results/final_acc.csv
from snakemake.utils import min_version, validate

min_version("9.0")

if (
    not workflow.overwrite_configfiles
):  # --configfile replaces the embedded default, it is not merged with it

    configfile: "config/config.yaml"


include: "rules/common.smk"


shorten_output(workflow)
validate(config, "config/schema.json", set_default=False)


report: "rules/report/workflow.rst"


container: "docker://python:3.11-slim"


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
        "results/final_acc.csv",
        expand(f"{RUN}/{{stage}}/checkpoint.safetensors", stage=STAGES),
        run_pictures(),
        run_pages(),


include: f"rules/sources/{SETTINGS.data.source}.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/results.smk"
include: "rules/pictures.smk"
include: "rules/pages.smk"


onstart:
    print(guide())
    write_runtime()
    ask_for_repetitions()


onsuccess:
    accept_stages()
    if made("final_acc"):
        print(outcome(Path(RUN)))
