rule catalog_batch:
    """Write a batch's metadata CSV, and its part of the ledger and of the splits."""
    input:
        all_stages,
    output:
        manifest="{batch}/catalog.json",
    log:
        "logs/{batch}/catalog.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        catalog=catalog_params(SETTINGS),
        shards=lambda wildcards: list(PLAN[wildcards.batch]),
    message:
        "Writing the tables of {wildcards.batch}"
    script:
        "../scripts/catalog_batch.py"


rule catalog:
    """Write splits, ledger, checksums and the dataset card of the whole release."""
    input:
        expand("{batch}/catalog.json", batch=PLAN),
    output:
        manifest="catalog.json",
    log:
        "logs/catalog.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        catalog=catalog_params(SETTINGS),
        batches=list(PLAN),
    message:
        "Writing splits, ledger, checksums and the dataset card"
    script:
        "../scripts/catalog.py"
