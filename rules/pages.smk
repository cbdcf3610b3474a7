# HTML pages, for Snakemake's report and for a browser.
rule table_page:
    input:
        table=RUN.table_csv,
        curves=RUN.picture("curves"),
    output:
        report(
            RUN.page("table"),
            caption="report/table.rst",
            category="1. Results",
            labels={"result": "Table"},
        ),
    log:
        RUN.log("table_page"),
    shell:
        "cswin page table {input.table:q} --curves {input.curves:q} --output {output:q} > {log:q} 2>&1"


rule configuration_page:
    input:
        stages=[RUN.config(name) for name in SETTINGS.stages],
        settings=RUN.stages,
    output:
        report(
            RUN.page("configuration"),
            caption="report/configuration.rst",
            category="3. Origin",
            labels={"page": "Configuration"},
        ),
    log:
        RUN.log("configuration_page"),
    params:
        runtime=RUNTIME,
        run=subpath(output[0], parent=True),
    shell:
        "cswin page configuration {params.run:q} --settings {input.settings:q} --runtime {params.runtime:q} --output {output:q} > {log:q} 2>&1"


rule data_page:
    input:
        summary=DATA.manifest,
        plan=DATA.plan,
        dataset=ancient(DATA.dataset),
        converted=DATA.converted,
    output:
        report(
            RUN.page("data"),
            caption="report/data.rst",
            category="3. Origin",
            labels={"page": "Data"},
        ),
    log:
        RUN.log("data_page"),
    shell:
        "cswin page data {input.summary:q} --dataset {input.dataset:q} --output {output:q} > {log:q} 2>&1"


rule provenance_page:
    input:
        records=[stage.record for stage in STAGES],
        settings=RUN.stages,
    output:
        report(
            RUN.page("provenance"),
            caption="report/provenance.rst",
            category="3. Origin",
            labels={"page": "Provenance"},
        ),
    log:
        RUN.log("provenance_page"),
    params:
        run=subpath(output[0], parent=True),
    shell:
        "cswin page provenance {params.run:q} --settings {input.settings:q} --output {output:q} > {log:q} 2>&1"
