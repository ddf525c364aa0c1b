rule package:
    """Write one zip per study and space into the release tree.

    Resumes by study.
    """
    input:
        defaced="{batch}/deface/{shard}.json",
        registered=registered_for_space,
    output:
        manifest="{batch}/package-{space}/{shard}.json",
    log:
        "logs/{batch}/package-{space}/{shard}.log",
    priority: 4
    conda:
        "../envs/cpu.yaml"
    threads: threads_for("package")
    resources:
        mem_mb=mem_mb_for("package"),
        runtime=runtime_for("package"),
    params:
        stage=lambda wildcards: stage_params(SETTINGS, f"package-{wildcards.space}"),
    message:
        "Packaging {wildcards.space} of {wildcards.batch}/{wildcards.shard}"
    script:
        "../scripts/package.py"
