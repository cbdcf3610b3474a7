# The embedded digits, packed like ImageNet in the report.
rule digits_archive:
    output:
        f"{DATA}/digits.tar.gz",
    log:
        f"{DATA}/logs/digits_archive.log",
    resources:
        mem_mb=2000,
        runtime=minutes(sum(IMAGES.values()), 100),
    shell:
        "cswin data digits --output {output} > {log} 2>&1"


rule extract:
    input:
        archive=ancient(f"{DATA}/digits.tar.gz"),
    output:
        receipt=f"{DATA}/extracted.json",
    log:
        f"{DATA}/logs/extract.log",
    resources:
        mem_mb=2000,
        runtime=minutes(sum(IMAGES.values()), 100),
    params:
        images=f"{DATA}/images",
    shell:
        "cswin data extract --archive {input.archive} --output {params.images} --receipt {output.receipt} --log {log}"
