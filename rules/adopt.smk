rule adopt:
    """Take the studies of a released native dataset as if they had just been defaced.

    Resumes by study.
    """
    output:
        manifest="{batch}/deface/{shard}.json",
    log:
        "logs/{batch}/deface/{shard}.log",
    conda:
        "../envs/cpu.yaml"
    threads: threads_for("adopt")
    resources:
        mem_mb=mem_mb_for("adopt"),
        runtime=runtime_for("adopt"),
    params:
        stage=stage_params(SETTINGS, "adopt"),
        studies=planned_studies,
    message:
        "Adopting {wildcards.batch}/{wildcards.shard}"
    script:
        "../scripts/adopt.py"
