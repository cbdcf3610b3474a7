rule manifest:
    input:
        SESSION.images_receipt,
    output:
        rows=DATA.rows,
        summary=DATA.manifest,
    log:
        DATA.log("manifest"),
    threads: 8
    resources:
        mem_mb=4000,
        runtime=JOBS.minutes(ALL, 200),
    params:
        images=IMAGES,
        promised=options(
            expect_train=SETTINGS.data.expect_train,
            expect_val=SETTINGS.data.expect_val,
            expect_classes=SETTINGS.data.classes,
            on_bad_image=SETTINGS.data.on_bad_image,
            on_duplicate=(
                None
                if SETTINGS.data.on_duplicate == "report"
                else SETTINGS.data.on_duplicate
            ),
            report=DATA.bad_images,
            seed=SETTINGS.data.seed,
            fingerprint=(
                None if SETTINGS.data.own_images is None else DATA.fingerprint
            ),
        ),
    shell:
        "cswin data manifest --images {params.images:q} --output {output.rows:q} --summary {output.summary:q} "
        "{params.promised} --workers {threads} --log {log:q}"


# The dataset for training. One job converts all missing shards: the disk is the limit, not the number of machines, and the number of
# shards need not be known in advance. Another shard size is no reason to run it, because Snakemake does not compare parameters that
# are functions of `input`.
rule dataset:
    input:
        summary=DATA.manifest,
        rows=ancient(DATA.rows),
    output:
        dataset=DATA.dataset,
        receipt=DATA.converted,
    log:
        DATA.log("dataset"),
    threads: CONVERSIONS
    resources:
        mem_mb=1000 * (1 + CONVERSIONS),
        runtime=JOBS.minutes(ALL, 200),
    params:
        images=IMAGES,
        shard_mb=lambda wildcards, input: SETTINGS.data.shard_mb,
        shards=lambda wildcards, input: str(SHARDS),
        cleanup=lambda wildcards, input: CLEANUP,
    shell:
        "cswin data dataset --images {params.images:q} --manifest {input.rows:q} --summary {input.summary:q} "
        "--shard-mb {params.shard_mb:q} --shards-dir {params.shards:q} --output {output.dataset:q} --receipt {output.receipt:q} "
        "{params.cleanup} --workers {threads} --log {log:q}"


# Converts the same images to shards of another size, and removes the extracted images unless data.keep_images is set. No training
# depends on it. Each shard size has its own folder, and dataset.json names the new shards when all of them exist.
rule shard_plan:
    input:
        converted=DATA.converted,
        summary=DATA.manifest,
        rows=ancient(DATA.rows),
    output:
        DATA.plan,
    log:
        DATA.log("shard_plan"),
    threads: CONVERSIONS
    resources:
        mem_mb=1000 * (1 + CONVERSIONS),
        runtime=JOBS.minutes(ALL, 200),
    params:
        images=IMAGES,
        shard_mb=SETTINGS.data.shard_mb,
        shards=str(SHARDS),
        dataset=str(DATA.dataset),
        plan=lambda wildcards, input: str(SHARDS / PLAN),
        cleanup=CLEANUP,
    shell:
        "cswin data dataset --images {params.images:q} --manifest {input.rows:q} --summary {input.summary:q} "
        "--shard-mb {params.shard_mb:q} --shards-dir {params.shards:q} --output {params.dataset:q} {params.cleanup} "
        "--workers {threads} --log {log:q} && cp {params.plan:q} {output:q}"


# Converts one shard, to repair it (snakemake -f FILE). No other job needs it.
rule convert:
    input:
        summary=DATA.manifest,
        rows=ancient(DATA.rows),
    output:
        shard=SHARDS / "{split}-{shard}.mindrecord",
        index=SHARDS / "{split}-{shard}.mindrecord.db",
        receipt=SHARDS / "{split}-{shard}.json",
    log:
        DATA.log("convert_{split}_{shard}"),
    wildcard_constraints:
        split="train|val",
        shard=r"\d{5}",
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        images=IMAGES,
        plan=str(SHARDS / PLAN),
    shell:
        "cswin data convert --images {params.images:q} --manifest {input.rows:q} --summary {params.plan:q} "
        "--split {wildcards.split:q} --shard {wildcards.shard:q} --output {output.shard:q} --log {log:q}"
