# Published weights (`pretrained: weights:NAME`): fetched, checked and converted where they are not there yet, once for all runs. Snakemake
# knows only the note that they are there, which is the run's own: it removes the output of a rule before it runs it again. The job runs
# where snakemake does, because the nodes of a cluster often have no network.
if SETTINGS.published:

    rule published_weights:
        output:
            RUN.weights,
        log:
            RUN.log("weights"),
        localrule: True
        params:
            name=SETTINGS.published,
            folder=str(weights_layout().folder),
        shell:
            "cswin weights get {params.name:q} --folder {params.folder:q} --receipt {output:q} --log {log:q} >> {log:q}"
