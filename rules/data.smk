rule manifest:
    input:
        images_receipt(),
    output:
        rows=f"{DATA}/manifest.csv.gz",
        summary=f"{DATA}/manifest.json",
    log:
        f"{DATA}/logs/manifest.log",
    threads: 8
    resources:
        mem_mb=4000,
        runtime=minutes(sum(IMAGES.values()), 200),
    params:
        images=images_folder(),
        promised=promised(),
    shell:
        "cswin data manifest --images {params.images} --output {output.rows} --summary {output.summary} "
        "{params.promised} --workers {threads} --log {log}"


# The manifest says which images there are; only the plan knows how they are cut, so that another cut trains nothing again.
checkpoint shard_plan:
    input:
        f"{DATA}/manifest.json",
    output:
        f"{DATA}/plan.json",
    log:
        f"{DATA}/logs/shard_plan.log",
    params:
        shard_mb=SETTINGS.data.shard_mb,
    shell:
        "cswin data plan --summary {input} --shard-mb {params.shard_mb} --output {output} > {log} 2>&1"


rule convert:
    input:
        summary=f"{DATA}/plan.json",
        rows=ancient(f"{DATA}/manifest.csv.gz"),
    output:
        shard=f"{DATA}/shards/{{split}}-{{shard}}.mindrecord",
        index=f"{DATA}/shards/{{split}}-{{shard}}.mindrecord.db",
        receipt=f"{DATA}/shards/{{split}}-{{shard}}.json",
    log:
        f"{DATA}/logs/convert_{{split}}_{{shard}}.log",
    wildcard_constraints:
        split="train|val",
        shard=r"\d{5}",
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        images=images_folder(),
    shell:
        "cswin data convert --images {params.images} --manifest {input.rows} --summary {input.summary} "
        "--split {wildcards.split} --shard {wildcards.shard} --output {output.shard} --log {log}"


rule dataset:
    input:
        summary=f"{DATA}/plan.json",
        receipts=shard_receipts,
    output:
        f"{DATA}/dataset.json",
    log:
        f"{DATA}/logs/dataset.log",
    resources:
        mem_mb=2000,
        runtime=minutes(sum(IMAGES.values()), 200),
    params:
        shards=f"{DATA}/shards",
        cleanup=optional(
            "--remove-images", None if SETTINGS.data.keep_images else f"{DATA}/images"
        ),
    shell:
        "cswin data dataset --summary {input.summary} --shards-dir {params.shards} --output {output} {params.cleanup} > {log} 2>&1"
