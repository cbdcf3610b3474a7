# Configuration files are the only way by which settings reach the trainer. Snakemake compares them by content.
rule stage_config:
    output:
        f"{RUN}/config/{{stage}}.yaml",
    log:
        f"{RUN}/logs/config_{{stage}}.log",
    wildcard_constraints:
        stage="|".join(STAGES),
    params:
        text=stage_text,
    shell:
        "printf '%s' {params.text:q} > {output} 2> {log}"


rule expectations_config:
    output:
        f"{RUN}/config/expectations.yaml",
    log:
        f"{RUN}/logs/config_expectations.log",
    params:
        text=dump(expectations(SETTINGS)),
    shell:
        "printf '%s' {params.text:q} > {output} 2> {log}"


# The stages alone, without what was reported for them: pages that do not show it are not made again when it changes.
rule stages_config:
    output:
        f"{RUN}/config/stages.yaml",
    log:
        f"{RUN}/logs/config_stages.log",
    params:
        text=dump(expectations(SETTINGS, reported=False)),
    shell:
        "printf '%s' {params.text:q} > {output} 2> {log}"


# Training state lives in {RUN}/<stage>/state, which no rule declares: a killed job's declared files are deleted, it is not.
# Files above 1 MB (compared by date) are ancient: they are never a reason to run. Nor is what only changes speed, RUNTIME. A job that
# runs decides by content whether it trains (cswin/train/stage.py).
for stage in STAGES:

    rule:
        name:
            f"train_{stage}"
        input:
            config=configuration(stage),
            manifest=f"{DATA}/manifest.json",
            dataset=ancient(DATASET),
            converted=CONVERTED,
            record=previous_record(stage),
            previous=ancient(previous_checkpoint(stage)),
        output:
            record=f"{RUN}/{stage}/record.json",
            checkpoint=f"{RUN}/{stage}/checkpoint.safetensors",
        log:
            f"{RUN}/logs/train_{stage}.log",
        threads: DEVICES_PER_NODE * SETTINGS.runtime.workers
        resources:  # `runtime` is the profile's: a stage goes on in as many jobs as it takes
            **on_devices(DEVICES_PER_NODE, NODES),
        params:
            launcher=launcher,
            limit=time_limit,
            folder=subpath(output.record, parent=True),
            runtime=RUNTIME,
            previous=optional("--previous", previous_checkpoint(stage)),
        shell:
            "exec {params.launcher} cswin train --config {input.config} --runtime {params.runtime} --dataset {input.dataset} "
            "--output {params.folder} --log {log} {params.previous} {params.limit}"
