rule manifest:
    input:
        images_receipt,
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


# What training waits for. One job converts all shards that are not there yet: the disk is the limit, not the number of machines, and
# how many shards there are need not be known before. The size of the shards is no reason to run it: Snakemake leaves parameters that
# are functions of `input` out of the comparison.
rule dataset:
    input:
        summary=f"{DATA}/manifest.json",
        rows=ancient(f"{DATA}/manifest.csv.gz"),
    output:
        dataset=DATASET,
        receipt=CONVERTED,
    log:
        f"{DATA}/logs/dataset.log",
    threads: CONVERSIONS
    resources:
        mem_mb=1000 * (1 + CONVERSIONS),
        runtime=minutes(sum(IMAGES.values()), 200),
    params:
        images=images_folder(),
        shard_mb=lambda wildcards, input: SETTINGS.data.shard_mb,
        shards=lambda wildcards, input: SHARDS,
        cleanup=lambda wildcards, input: cleanup(),
    shell:
        "cswin data dataset --images {params.images} --manifest {input.rows} --summary {input.summary} "
        "--shard-mb {params.shard_mb} --shards-dir {params.shards} --output {output.dataset} --receipt {output.receipt} {params.cleanup} "
        "--workers {threads} --log {log}"


# Cuts the same images into shards of another size, and removes the extracted images where they are not kept. No training depends on
# it, so the shards of each size have a folder of their own, and dataset.json names the new ones once they are all there.
rule shard_plan:
    input:
        converted=CONVERTED,
        summary=f"{DATA}/manifest.json",
        rows=ancient(f"{DATA}/manifest.csv.gz"),
    output:
        f"{DATA}/plan.json",
    log:
        f"{DATA}/logs/shard_plan.log",
    threads: CONVERSIONS
    resources:
        mem_mb=1000 * (1 + CONVERSIONS),
        runtime=minutes(sum(IMAGES.values()), 200),
    params:
        images=images_folder(),
        shard_mb=SETTINGS.data.shard_mb,
        shards=SHARDS,
        dataset=DATASET,
        cleanup=cleanup(),
    shell:
        "cswin data dataset --images {params.images} --manifest {input.rows} --summary {input.summary} "
        "--shard-mb {params.shard_mb} --shards-dir {params.shards} --output {params.dataset} {params.cleanup} "
        "--workers {threads} --log {log} && cp {params.shards}/plan.json {output}"


# One shard alone: for the repair of a damaged one (snakemake -f FILE). No other job asks for it.
rule convert:
    input:
        summary=f"{DATA}/manifest.json",
        rows=ancient(f"{DATA}/manifest.csv.gz"),
    output:
        shard=f"{SHARDS}/{{split}}-{{shard}}.mindrecord",
        index=f"{SHARDS}/{{split}}-{{shard}}.mindrecord.db",
        receipt=f"{SHARDS}/{{split}}-{{shard}}.json",
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
        plan=f"{SHARDS}/plan.json",
    shell:
        "cswin data convert --images {params.images} --manifest {input.rows} --summary {params.plan} "
        "--split {wildcards.split} --shard {wildcards.shard} --output {output.shard} --log {log}"
