rule convert:
    """Turn every series of a shard into NIfTI, with its header and an account of its slices.

    Resumes by study: those already recorded with these settings and files are skipped.
    """
    output:
        manifest="{batch}/convert/{shard}.json",
    log:
        "logs/{batch}/convert/{shard}.log",
    conda:
        "../envs/cpu.yaml"
    threads: threads_for("convert")
    resources:
        mem_mb=mem_mb_for("convert"),
        runtime=runtime_for("convert"),
    params:
        stage=stage_params(SETTINGS, "convert"),
        studies=planned_studies,
    message:
        "Converting {wildcards.batch}/{wildcards.shard}"
    script:
        "../scripts/convert.py"
