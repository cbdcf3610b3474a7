# One tar or tar.gz with train/ and val/ by class: the report's imagenet.tar.gz.
rule extract:
    input:
        archive=ancient(SETTINGS.data.archive),
    output:
        receipt=DATA.extracted,
    log:
        DATA.log("extract"),
    threads: 8
    resources:
        mem_mb=2000,
        runtime=JOBS.minutes(ALL, 100),
    params:
        images=IMAGES,
    shell:
        "cswin data extract --archive {input.archive:q} --output {params.images:q} --receipt {output.receipt:q} --log {log:q}"
