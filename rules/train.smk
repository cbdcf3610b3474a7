# Configuration files are the only way by which settings reach the trainer. Snakemake compares them by content.
rule stage_config:
    output:
        RUN.config("{stage}"),
    log:
        RUN.log("config_{stage}"),
    wildcard_constraints:
        stage=ANY_STAGE,
    params:
        text=lambda wildcards: dump(resolve_stage(SETTINGS, wildcards.stage)),
    shell:
        "printf '%s' {params.text:q} > {output:q} 2> {log:q}"


rule expectations_config:
    output:
        RUN.expectations,
    log:
        RUN.log("config_expectations"),
    params:
        text=dump(expectations(SETTINGS)),
    shell:
        "printf '%s' {params.text:q} > {output:q} 2> {log:q}"


# The stages alone, without what was reported for them: pages that do not show it are not made again when it changes.
rule stages_config:
    output:
        RUN.stages,
    log:
        RUN.log("config_stages"),
    params:
        text=dump(expectations(SETTINGS, reported=False)),
    shell:
        "printf '%s' {params.text:q} > {output:q} 2> {log:q}"


# Training state lives in results/<run>/<stage>/state, which no rule declares: a killed job's declared files are deleted, it is not.
# Files above 1 MB (compared by date) are ancient: they are never a reason to run. Nor is what only changes speed, RUNTIME. A job that
# runs decides by content whether it trains (cswin/run/decision.py).
for stage in SETTINGS.stages:

    rule:
        name:
            f"train_{stage}"
        input:
            config=SESSION.configuration(stage),
            manifest=DATA.manifest,
            dataset=ancient(DATA.dataset),
            converted=DATA.converted,
            record=SESSION.record_before(stage),
            previous=ancient(SESSION.checkpoint_before(stage)),
        output:
            record=RUN.stage(stage).record,
            checkpoint=RUN.stage(stage).checkpoint,
        log:
            RUN.log(f"train_{stage}"),
        threads: JOBS.cores
        resources:  # `runtime` is the profile's: a stage goes on in as many jobs as it takes
            **JOBS.on_devices(SETTINGS.runtime.nodes),
        params:
            launcher=launcher,
            limit=time_limit,
            folder=subpath(output.record, parent=True),
            runtime=RUNTIME,
            previous=options(previous=SESSION.start_of(stage)),
        shell:
            "exec {params.launcher} cswin train --config {input.config:q} --runtime {params.runtime:q} --dataset {input.dataset:q} "
            "--output {params.folder:q} --log {log:q} {params.previous} {params.limit}"
