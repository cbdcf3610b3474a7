rule evaluate:
    input:
        record=f"{RUN}/{{stage}}/record.json",
        checkpoint=ancient(f"{RUN}/{{stage}}/checkpoint.safetensors"),
        dataset=ancient(DATASET),
        converted=CONVERTED,
    output:
        figures=f"{RUN}/{{stage}}/evaluation.json",
        predictions=f"{RUN}/{{stage}}/predictions.npz",
        per_class=f"{RUN}/{{stage}}/per_class.csv",
        confusions=f"{RUN}/{{stage}}/confusions.csv",
    log:
        f"{RUN}/logs/evaluate_{{stage}}.log",
    wildcard_constraints:
        stage="|".join(STAGES),
    threads: DEVICES_PER_NODE * SETTINGS.runtime.workers
    resources:
        **on_devices(DEVICES_PER_NODE),
        runtime=minutes(IMAGES["val"], 25),
    params:
        runtime=RUNTIME,
    shell:
        "cswin evaluate --checkpoint {input.checkpoint} --data {input.dataset} --runtime {params.runtime} "
        "--output {output.figures} --predictions {output.predictions} "
        "--per-class {output.per_class} --confusions {output.confusions} > {log} 2>&1"


rule table:
    input:
        evaluations=expand(f"{RUN}/{{stage}}/evaluation.json", stage=STAGES),
        predictions=expand(f"{RUN}/{{stage}}/predictions.npz", stage=STAGES),
        settings=f"{RUN}/config/expectations.yaml",
    output:
        csv=report(
            f"{RUN}/final_acc.csv",
            caption="report/table.rst",
            category="1. Results",
            labels={"result": "Table, as CSV"},
        ),
        markdown=f"{RUN}/final_acc.md",
        json=f"{RUN}/final_acc.json",
    log:
        f"{RUN}/logs/table.log",
    params:
        run=subpath(output.csv, parent=True),
    shell:
        "cswin table {params.run} --settings {input.settings} --output {output} > {log} 2>&1"


rule card:
    input:
        evaluations=expand(f"{RUN}/{{stage}}/evaluation.json", stage=STAGES),
        settings=f"{RUN}/config/expectations.yaml",
        dataset=ancient(DATASET),
        converted=CONVERTED,
    output:
        f"{RUN}/README.md",
    log:
        f"{RUN}/logs/card.log",
    params:
        runtime=RUNTIME,
        run=subpath(output[0], parent=True),
    shell:
        "cswin card {params.run} --settings {input.settings} --runtime {params.runtime} --dataset {input.dataset} "
        "--output {output} > {log} 2>&1"


rule final_acc:
    input:
        card=f"{RUN}/README.md",
        tables=multiext(f"{RUN}/final_acc", ".csv", ".md", ".json"),
        pictures=run_pictures(),
        pages=run_pages(),
    output:
        multiext("results/final_acc", ".csv", ".md", ".json"),
    log:
        f"{RUN}/logs/final_acc.log",
    shell:
        "cp {input.tables} results/ 2> {log}"
