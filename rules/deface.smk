rule deface:
    """Mask the brain and remove the face in every accepted series of a shard.

    Holds a GPU where the config's device is cuda. Resumes by study.
    """
    input:
        converted="{batch}/convert/{shard}.json",
        curated="{batch}/curate/{shard}.json",
    output:
        manifest="{batch}/deface/{shard}.json",
    log:
        "logs/{batch}/deface/{shard}.log",
    priority: 2
    conda:
        "../envs/gpu.yaml"
    threads: threads_for("deface")
    resources:
        gpu=int(SETTINGS.deface.device == "cuda"),
        mem_mb=mem_mb_for("deface"),
        runtime=runtime_for("deface"),
    params:
        stage=stage_params(SETTINGS, "deface"),
        decisions=decisions_digest(SETTINGS.deface.decisions),
    message:
        "Masking and defacing {wildcards.batch}/{wildcards.shard}"
    script:
        "../scripts/deface.py"
