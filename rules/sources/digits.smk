# The embedded digits, packed like ImageNet in the report, and extracted again.
rule extract:
    output:
        archive=f"{DATA}/digits.tar.gz",
        receipt=f"{DATA}/extracted.json",
    log:
        f"{DATA}/logs/extract.log",
    resources:
        mem_mb=2000,
        runtime=minutes(sum(IMAGES.values()), 100),
    params:
        images=f"{DATA}/images",
    shell:
        "cswin data digits --output {output.archive} && "
        "cswin data extract --archive {output.archive} --output {params.images} --receipt {output.receipt} --log {log}"
