# One tar or tar.gz with train/ and val/ by class: the report's imagenet.tar.gz.
rule extract:
    input:
        archive=ancient(SETTINGS.data.archive),
    output:
        receipt=f"{DATA}/extracted.json",
    log:
        f"{DATA}/logs/extract.log",
    threads: 8
    resources:
        mem_mb=2000,
        runtime=minutes(sum(IMAGES.values()), 100),
    params:
        images=f"{DATA}/images",
    shell:
        "cswin data extract --archive {input.archive} --output {params.images} --receipt {output.receipt} --log {log}"
