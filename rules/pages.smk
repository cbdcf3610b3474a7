# Pages for people: what Snakemake's report shows beside the pictures, and a browser by itself.
rule table_page:
    input:
        table=f"{RUN}/final_acc.csv",
        curves=f"{RUN}/curves.png",
    output:
        report(
            f"{RUN}/table.html",
            caption="report/table.rst",
            category="1. Results",
            labels={"result": "Table"},
        ),
    log:
        f"{RUN}/logs/table_page.log",
    shell:
        "cswin page table {input.table} --curves {input.curves} --output {output} > {log} 2>&1"


rule configuration_page:
    input:
        stages=expand(f"{RUN}/config/{{stage}}.yaml", stage=STAGES),
        settings=f"{RUN}/config/stages.yaml",
    output:
        report(
            f"{RUN}/configuration.html",
            caption="report/configuration.rst",
            category="3. Origin",
            labels={"page": "Configuration"},
        ),
    log:
        f"{RUN}/logs/configuration_page.log",
    params:
        runtime=RUNTIME,
        run=subpath(output[0], parent=True),
    shell:
        "cswin page configuration {params.run} --settings {input.settings} --runtime {params.runtime} --output {output} > {log} 2>&1"


rule data_page:
    input:
        summary=f"{DATA}/manifest.json",
        plan=f"{DATA}/plan.json",
        dataset=ancient(DATASET),
        converted=CONVERTED,
    output:
        report(
            f"{RUN}/data.html",
            caption="report/data.rst",
            category="3. Origin",
            labels={"page": "Data"},
        ),
    log:
        f"{RUN}/logs/data_page.log",
    shell:
        "cswin page data {input.summary} --dataset {input.dataset} --output {output} > {log} 2>&1"


rule provenance_page:
    input:
        records=expand(f"{RUN}/{{stage}}/record.json", stage=STAGES),
        settings=f"{RUN}/config/stages.yaml",
    output:
        report(
            f"{RUN}/provenance.html",
            caption="report/provenance.rst",
            category="3. Origin",
            labels={"page": "Provenance"},
        ),
    log:
        f"{RUN}/logs/provenance_page.log",
    params:
        run=subpath(output[0], parent=True),
    shell:
        "cswin page provenance {params.run} --settings {input.settings} --output {output} > {log} 2>&1"
