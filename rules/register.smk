rule register:
    """Register every series to its study's center and, through it, to the atlas.

    One process per core, one ITK thread each. Resumes by study.
    """
    input:
        defaced="{batch}/deface/{shard}.json",
    output:
        manifest="{batch}/register/{shard}.json",
    log:
        "logs/{batch}/register/{shard}.log",
    priority: 3
    conda:
        "../envs/cpu.yaml"
    threads: threads_for("register")
    resources:
        mem_mb=mem_mb_for("register"),
        runtime=runtime_for("register"),
    params:
        stage=stage_params(SETTINGS, "register"),
        decisions=decisions_digest(SETTINGS.register_.decisions),
    message:
        "Registering {wildcards.batch}/{wildcards.shard}"
    script:
        "../scripts/register.py"
