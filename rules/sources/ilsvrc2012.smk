# The three official files of ILSVRC2012.
rule extract:
    input:
        train=ancient(SETTINGS.data.train_archive),
        val=ancient(SETTINGS.data.val_archive),
        devkit=ancient(SETTINGS.data.devkit),
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
        "cswin data extract-ilsvrc --train-archive {input.train:q} --val-archive {input.val:q} --devkit {input.devkit:q} "
        "--output {params.images:q} --receipt {output.receipt:q} --log {log:q}"
