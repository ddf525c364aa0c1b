rule curate:
    """Tell what each series is, accept or reject it with a reason, name it, choose the center.

    Resumes by study.
    """
    input:
        converted="{batch}/convert/{shard}.json",
    output:
        manifest="{batch}/curate/{shard}.json",
    log:
        "logs/{batch}/curate/{shard}.log",
    priority: 1
    conda:
        "../envs/cpu.yaml"
    threads: threads_for("curate")
    resources:
        mem_mb=mem_mb_for("curate"),
        runtime=runtime_for("curate"),
    params:
        stage=stage_params(SETTINGS, "curate"),
    message:
        "Curating {wildcards.batch}/{wildcards.shard}"
    script:
        "../scripts/curate.py"
