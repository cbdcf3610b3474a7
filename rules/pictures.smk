# Pictures, drawn only from the run's files.
rule curves:
    input:
        evaluations=[stage.evaluation for stage in STAGES],
        settings=RUN.expectations,
    output:
        report(
            RUN.picture("curves"),
            caption="report/curves.rst",
            category="1. Results",
            labels={"result": "Curves over all stages"},
        ),
    log:
        RUN.log("curves"),
    params:
        run=subpath(output[0], parent=True),
    shell:
        "cswin draw curves {params.run:q} --settings {input.settings:q} --output {output:q} > {log:q} 2>&1"


rule throughput:
    input:
        evaluations=[stage.evaluation for stage in STAGES],
        settings=RUN.stages,
    output:
        report(
            RUN.picture("throughput"),
            caption="report/throughput.rst",
            category="1. Results",
            labels={"result": "Throughput and data wait"},
        ),
    log:
        RUN.log("throughput"),
    params:
        run=subpath(output[0], parent=True),
    shell:
        "cswin draw throughput {params.run:q} --settings {input.settings:q} --output {output:q} > {log:q} 2>&1"


rule classes:
    input:
        predictions=STAGE.predictions,
        config=RUN.config("{stage}"),
    output:
        report(
            STAGE.picture("classes"),
            caption="report/classes.rst",
            category="2. Stages",
            labels={"stage": "{stage}", "picture": "Accuracy by class"},
        ),
    log:
        RUN.log("classes_{stage}"),
    wildcard_constraints:
        stage=ANY_STAGE,
    shell:
        "cswin draw classes --config {input.config:q} --predictions {input.predictions:q} --output {output:q} > {log:q} 2>&1"


rule predictions:
    input:
        predictions=STAGE.predictions,
        config=RUN.config("{stage}"),
        dataset=ancient(DATA.dataset),
        converted=DATA.converted,
    output:
        report(
            STAGE.picture("predictions"),
            caption="report/predictions.rst",
            category="2. Stages",
            labels={"stage": "{stage}", "picture": "Right and wrong predictions"},
        ),
    log:
        RUN.log("predictions_{stage}"),
    wildcard_constraints:
        stage=ANY_STAGE,
    shell:
        "cswin draw predictions --config {input.config:q} --dataset {input.dataset:q} --predictions {input.predictions:q} "
        "--output {output:q} > {log:q} 2>&1"


rule samples:
    input:
        config=RUN.config("{stage}"),
        manifest=DATA.manifest,
        dataset=ancient(DATA.dataset),
        converted=DATA.converted,
    output:
        report(
            STAGE.picture("samples"),
            caption="report/samples.rst",
            category="2. Stages",
            labels={"stage": "{stage}", "picture": "Training samples"},
        ),
    log:
        RUN.log("samples_{stage}"),
    wildcard_constraints:
        stage=ANY_STAGE,
    shell:
        "cswin draw samples --config {input.config:q} --dataset {input.dataset:q} --output {output:q} > {log:q} 2>&1"
