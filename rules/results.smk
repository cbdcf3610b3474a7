rule evaluate:
    input:
        record=f"{RUN}/{{stage}}/record.json",
        checkpoint=ancient(f"{RUN}/{{stage}}/checkpoint.safetensors"),
        dataset=ancient(f"{DATA}/dataset.json"),
    output:
        figures=f"{RUN}/{{stage}}/evaluation.json",
        predictions=f"{RUN}/{{stage}}/predictions.npz",
    log:
        f"{RUN}/logs/evaluate_{{stage}}.log",
    wildcard_constraints:
        stage="|".join(STAGES),
    threads: SETTINGS.runtime.workers
    params:
        runtime=RUNTIME,
    shell:
        "cswin evaluate --checkpoint {input.checkpoint} --data {input.dataset} --runtime {params.runtime} "
        "--output {output.figures} --predictions {output.predictions} > {log} 2>&1"


rule table:
    input:
        evaluations=expand(f"{RUN}/{{stage}}/evaluation.json", stage=STAGES),
        settings=f"{RUN}/config/expectations.yaml",
    output:
        csv=f"{RUN}/final_acc.csv",
    log:
        f"{RUN}/logs/table.log",
    params:
        run=subpath(output.csv, parent=True),
    shell:
        "cswin table {params.run} --settings {input.settings} --output {output.csv} > {log} 2>&1"


rule curves:
    input:
        evaluations=expand(f"{RUN}/{{stage}}/evaluation.json", stage=STAGES),
        settings=f"{RUN}/config/expectations.yaml",
    output:
        f"{RUN}/curves.png",
    log:
        f"{RUN}/logs/curves.log",
    params:
        run=subpath(output[0], parent=True),
    shell:
        "cswin curves {params.run} --settings {input.settings} --output {output} > {log} 2>&1"


rule final_acc:
    input:
        table=f"{RUN}/final_acc.csv",
        curves=f"{RUN}/curves.png",
    output:
        "results/final_acc.csv",
    log:
        f"{RUN}/logs/final_acc.log",
    shell:
        "cp {input.table} {output} 2> {log}"
