# The three official files of ILSVRC2012.
rule extract:
    input:
        train=ancient(SETTINGS.data.train_archive),
        val=ancient(SETTINGS.data.val_archive),
        devkit=ancient(SETTINGS.data.devkit),
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
        "cswin data extract-ilsvrc --train-archive {input.train} --val-archive {input.val} --devkit {input.devkit} "
        "--output {params.images} --receipt {output.receipt} --log {log}"
