# Settings reach the trainer only through configuration files, which Snakemake compares by content.
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


# The stages without their reported figures, for pages that do not show these: a change of the figures does not write them again.
rule stages_config:
    output:
        RUN.stages,
    log:
        RUN.log("config_stages"),
    params:
        text=dump(expectations(SETTINGS, reported=False)),
    shell:
        "printf '%s' {params.text:q} > {output:q} 2> {log:q}"


# Before the first stage, and only where runtime.preflight wants it (SESSION.preflight). Its figures differ each time, so training takes
# them as ancient(), together with a receipt whose content never changes (rules/common.smk). preflight.md is not declared: Snakemake
# would delete it when a check fails.
rule preflight:
    input:
        config=RUN.config(FIRST),
        dataset=ancient(DATA.dataset),
        converted=DATA.converted,
        record=SESSION.record_before(FIRST),
        previous=ancient(SESSION.checkpoint_before(FIRST)),
    output:
        figures=RUN.preflight,
        receipt=RUN.preflight_receipt,
    log:
        RUN.log("preflight"),
    retries: 0  # not those of a cluster's profile: a failed check would fail again
    threads: JOBS.cores
    resources:
        **JOBS.on_devices(SETTINGS.runtime.nodes),
    params:
        launcher=launcher,
        runtime=RUNTIME,
        previous=options(previous=SESSION.start_of(FIRST)),
    shell:
        "exec {params.launcher} cswin preflight --config {input.config:q} --runtime {params.runtime:q} --dataset {input.dataset:q} "
        "--output {output.figures:q} --log {log:q} {params.previous}"


# The training state is in results/<run>/<stage>/state. No rule declares it, because Snakemake deletes the declared files of a killed
# job. Files above 1 MB, which Snakemake compares by date, are ancient() and never a reason to run. RUNTIME, which only affects speed,
# is no reason either. A job that runs decides by content whether it trains (cswin/run/decision.py).
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
            preflight=ancient(SESSION.preflight(stage, RUN.preflight)),
            cleared=SESSION.preflight(stage, RUN.preflight_receipt),
        output:
            record=RUN.stage(stage).record,
            checkpoint=RUN.stage(stage).checkpoint,
        log:
            RUN.log(f"train_{stage}"),
        threads: JOBS.cores
        resources:  # `runtime` is that of the profile: a long stage is continued by further jobs
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
