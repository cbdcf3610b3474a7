checkpoint manifest:
    input:
        images_receipt(),
    output:
        rows=f"{DATA}/manifest.csv.gz",
        summary=f"{DATA}/manifest.json",
    log:
        f"{DATA}/logs/manifest.log",
    threads: 8
    params:
        images=images_folder(),
        promised=promised(),
    shell:
        "cswin data manifest --images {params.images} --output {output.rows} --summary {output.summary} "
        "{params.promised} --workers {threads} --log {log}"


rule convert:
    input:
        summary=f"{DATA}/manifest.json",
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
    params:
        images=images_folder(),
    shell:
        "cswin data convert --images {params.images} --manifest {input.rows} --summary {input.summary} "
        "--split {wildcards.split} --shard {wildcards.shard} --output {output.shard} --log {log}"


rule dataset:
    input:
        summary=f"{DATA}/manifest.json",
        receipts=shard_receipts,
    output:
        f"{DATA}/dataset.json",
    log:
        f"{DATA}/logs/dataset.log",
    params:
        shards=f"{DATA}/shards",
        cleanup=optional(
            "--remove-images", None if SETTINGS.data.keep_images else f"{DATA}/images"
        ),
    shell:
        "cswin data dataset --summary {input.summary} --shards-dir {params.shards} --output {output} {params.cleanup} > {log} 2>&1"
