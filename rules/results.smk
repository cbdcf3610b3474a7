rule evaluate:
    input:
        record=STAGE.record,
        checkpoint=ancient(STAGE.checkpoint),
        dataset=ancient(DATA.dataset),
        converted=DATA.converted,
    output:
        figures=STAGE.evaluation,
        predictions=STAGE.predictions,
        per_class=STAGE.per_class,
        confusions=STAGE.confusions,
    log:
        RUN.log("evaluate_{stage}"),
    wildcard_constraints:
        stage=ANY_STAGE,
    threads: JOBS.cores
    resources:
        **JOBS.on_devices(),
        runtime=JOBS.minutes(VAL, 25),
    params:
        runtime=RUNTIME,
    shell:
        "cswin evaluate --checkpoint {input.checkpoint:q} --data {input.dataset:q} --runtime {params.runtime:q} "
        "--output {output.figures:q} --predictions {output.predictions:q} "
        "--per-class {output.per_class:q} --confusions {output.confusions:q} > {log:q} 2>&1"


# On request: the last stage's checkpoint on further test sets, as far as suite.yaml (like docs/suite.yaml) says where they are.
rule suite:
    input:
        record=STAGES[-1].record,
        checkpoint=ancient(STAGES[-1].checkpoint),
        datasets=SUITE,
    output:
        RUN.suite,
    log:
        RUN.log("suite"),
    threads: JOBS.cores
    resources:
        **JOBS.on_devices(),
        runtime=JOBS.minutes(SUITE_IMAGES, 25),
    params:
        runtime=RUNTIME,
    shell:
        "cswin evaluate --checkpoint {input.checkpoint:q} --suite {input.datasets:q} --runtime {params.runtime:q} "
        "--output {output:q} > {log:q} 2>&1"


rule table:
    input:
        evaluations=[stage.evaluation for stage in STAGES],
        predictions=[stage.predictions for stage in STAGES],
        settings=RUN.expectations,
    output:
        csv=report(
            RUN.table_csv,
            caption="report/table.rst",
            category="1. Results",
            labels={"result": "Table, as CSV"},
        ),
        markdown=RUN.table_markdown,
        json=RUN.table_json,
    log:
        RUN.log("table"),
    params:
        run=subpath(output.csv, parent=True),
    shell:
        "cswin table {params.run:q} --settings {input.settings:q} --output {output:q} > {log:q} 2>&1"


rule card:
    input:
        evaluations=[stage.evaluation for stage in STAGES],
        settings=RUN.expectations,
        dataset=ancient(DATA.dataset),
        converted=DATA.converted,
    output:
        RUN.card,
    log:
        RUN.log("card"),
    params:
        runtime=RUNTIME,
        run=subpath(output[0], parent=True),
    shell:
        "cswin card {params.run:q} --settings {input.settings:q} --runtime {params.runtime:q} --dataset {input.dataset:q} "
        "--output {output:q} > {log:q} 2>&1"


rule final_acc:
    input:
        card=RUN.card,
        tables=RUN.tables,
        pictures=PICTURES,
        pages=PAGES,
    output:
        LAST.tables,
    log:
        RUN.log("final_acc"),
    params:
        results=subpath(output[0], parent=True),
    shell:
        "cp {input.tables:q} {params.results:q} 2> {log:q}"
