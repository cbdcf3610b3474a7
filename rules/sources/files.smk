# Files in any layout that cswin/data/sources reads. Nothing asks for this job where the images stay in a folder of one's own.
rule extract:
    input:
        ancient(list(SETTINGS.data.inputs.values())),
    output:
        receipt=DATA.extracted,
    log:
        DATA.log("extract"),
    threads: 8
    resources:
        mem_mb=2000,
        runtime=JOBS.minutes(ALL, 100),
    params:
        **({"path": SETTINGS.data.path} if SETTINGS.data.path else {}),
        images=IMAGES,
        source=lambda wildcards, input: SETTINGS.data.source,  # a new source has other inputs
        paths=lambda wildcards, input: options(
            **{
                key: getattr(SETTINGS.data, key)
                for key in SOURCES[SETTINGS.data.source].inputs
            }
        ),
    shell:
        "cswin data extract --source {params.source:q} {params.paths} --output {params.images:q} --receipt {output.receipt:q} "
        "--log {log:q}"
