# The digits of scikit-learn, written as an archive in the report's layout and then extracted.
rule extract:
    output:
        archive=DATA.digits,
        receipt=DATA.extracted,
    log:
        DATA.log("extract"),
    resources:
        mem_mb=2000,
        runtime=JOBS.minutes(ALL, 100),
    params:
        images=IMAGES,
    shell:
        "cswin data digits --output {output.archive:q} && "
        "cswin data extract --source digits --archive {output.archive:q} --output {params.images:q} --receipt {output.receipt:q} --log {log:q}"
