# Pictures, drawn from the run's files alone.
rule curves:
    input:
        evaluations=expand(f"{RUN}/{{stage}}/evaluation.json", stage=STAGES),
        settings=f"{RUN}/config/expectations.yaml",
    output:
        report(
            f"{RUN}/curves.png",
            caption="report/curves.rst",
            category="1. Results",
            labels={"result": "Curves over all stages"},
        ),
    log:
        f"{RUN}/logs/curves.log",
    params:
        run=subpath(output[0], parent=True),
    shell:
        "cswin draw curves {params.run} --settings {input.settings} --output {output} > {log} 2>&1"


rule throughput:
    input:
        evaluations=expand(f"{RUN}/{{stage}}/evaluation.json", stage=STAGES),
        settings=f"{RUN}/config/stages.yaml",
    output:
        report(
            f"{RUN}/throughput.png",
            caption="report/throughput.rst",
            category="1. Results",
            labels={"result": "Throughput and data wait"},
        ),
    log:
        f"{RUN}/logs/throughput.log",
    params:
        run=subpath(output[0], parent=True),
    shell:
        "cswin draw throughput {params.run} --settings {input.settings} --output {output} > {log} 2>&1"


rule classes:
    input:
        predictions=f"{RUN}/{{stage}}/predictions.npz",
        config=f"{RUN}/config/{{stage}}.yaml",
    output:
        report(
            f"{RUN}/{{stage}}/classes.png",
            caption="report/classes.rst",
            category="2. Stages",
            labels={"stage": "{stage}", "picture": "Accuracy by class"},
        ),
    log:
        f"{RUN}/logs/classes_{{stage}}.log",
    wildcard_constraints:
        stage="|".join(STAGES),
    shell:
        "cswin draw classes --config {input.config} --predictions {input.predictions} --output {output} > {log} 2>&1"


rule predictions:
    input:
        predictions=f"{RUN}/{{stage}}/predictions.npz",
        config=f"{RUN}/config/{{stage}}.yaml",
        dataset=ancient(DATASET),
        converted=CONVERTED,
    output:
        report(
            f"{RUN}/{{stage}}/predictions.png",
            caption="report/predictions.rst",
            category="2. Stages",
            labels={"stage": "{stage}", "picture": "Right and wrong predictions"},
        ),
    log:
        f"{RUN}/logs/predictions_{{stage}}.log",
    wildcard_constraints:
        stage="|".join(STAGES),
    shell:
        "cswin draw predictions --config {input.config} --dataset {input.dataset} --predictions {input.predictions} "
        "--output {output} > {log} 2>&1"


rule samples:
    input:
        config=f"{RUN}/config/{{stage}}.yaml",
        manifest=f"{DATA}/manifest.json",
        dataset=ancient(DATASET),
        converted=CONVERTED,
    output:
        report(
            f"{RUN}/{{stage}}/samples.png",
            caption="report/samples.rst",
            category="2. Stages",
            labels={"stage": "{stage}", "picture": "Training samples"},
        ),
    log:
        f"{RUN}/logs/samples_{{stage}}.log",
    wildcard_constraints:
        stage="|".join(STAGES),
    shell:
        "cswin draw samples --config {input.config} --dataset {input.dataset} --output {output} > {log} 2>&1"
