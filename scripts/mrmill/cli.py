"""The `mrmill` command: what people type; every command is a few lines over the library."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mrmill.config import ROOT, Config, load_config
from mrmill.errors import UserError, public_words

app = typer.Typer(
    help="From a hospital's MRI export to a public, de-identified dataset in the MR-RATE layout.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

ConfigFile = Annotated[
    Path, typer.Option("--configfile", "-c", help="Settings of the run (see config/config.yaml).")
]
Workers = Annotated[int, typer.Option("--cores", "-j", help="Processes to use.", min=1)]
NewKey = Annotated[bool, typer.Option("--new-key", help="First make the pseudonym key.")]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Run a command; expected errors end with their message and exit code 2, not a traceback."""
    try:
        app()
    except (UserError, OSError) as error:
        from mrmill.shards import is_machine_error

        if not is_machine_error(error):
            raise
        text = f"mrmill: {public_words(error)}"
        errors.print(text, style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


@app.command()
def plan(
    configfile: ConfigFile,
    cores: Workers = CORES,
    new_key: NewKey = False,
) -> None:
    """Look through the export and put its studies into shards and batches."""
    from mrmill.run import alone, make_key, plan_with_progress

    config = load_config(configfile)
    if new_key:
        make_key(config, console)
    with alone(config):
        plan_with_progress(config, cores, console)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    configfile: ConfigFile,
    cores: Workers = CORES,
    new_key: NewKey = False,
) -> None:
    """Plan, then run the workflow; all further arguments go to snakemake."""
    from mrmill.run import make_key, run_workflow

    config = load_config(configfile)
    if new_key:
        make_key(config, console)
    raise typer.Exit(run_workflow(config, configfile, cores, context.args, console))


@app.command()
def check(configfile: ConfigFile) -> None:
    """Check config, tools, models, key, disks; say what to do about each problem."""
    from mrmill.check import check as look

    findings = look(load_config(configfile))
    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    for finding in findings:
        text = f"{finding.what}. {finding.advice}" if finding.advice else finding.what
        console.print(f"[{colours[finding.level]}]{finding.level:8}[/] ", end="")
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(any(f.level == "problem" for f in findings))


@app.command()
def status(
    configfile: ConfigFile,
    batch: Annotated[str, typer.Option(help="Only this batch.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Stay, until the run ends or Ctrl-C.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the flow into this PNG or SVG.")
    ] = None,
) -> None:
    """Show how far a run is and where series are lost, from any shell that sees the work tree."""
    from mrmill.ledger.flow import flow_table, read_flows
    from mrmill.stages import stages_in
    from mrmill.status import StatusReader
    from mrmill.status.live import watch as keep_looking
    from mrmill.status.text import status_table

    config = load_config(configfile)
    work = _work_tree(config)
    reader = StatusReader(work, stages_in(config))
    flows = read_flows(work, batch)
    if watch:
        keep_looking(reader, batch, console, as_json)
    elif picture:
        from mrmill.ledger.picture import draw_flow

        draw_flow(flows, picture)
        console.print(picture, highlight=False)
    elif as_json:
        print(json.dumps({**reader.read(batch).as_dict(), **flows.as_dict()}, indent=1))
    else:
        console.print(status_table(reader.read(batch), console.width))
        if flows.batches:
            console.print(flow_table(flows))


@app.command()
def estimate(
    pilot: Annotated[Path, typer.Option("--from", help="Config file or work tree of a pilot.")],
    studies: Annotated[int, typer.Option(help="Studies of the whole export.", min=1)],
    cores: Annotated[int, typer.Option(help="Cores that CPU stages share.", min=1)] = CORES,
    gpus: Annotated[int, typer.Option(help="GPUs that GPU stages share.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Tell from a pilot what a whole export takes: hours, bytes, inodes."""
    from mrmill.estimate import estimate as predict
    from mrmill.estimate import text_of

    found = predict(pilot, studies, cores, gpus)
    print(json.dumps(found.as_dict(), indent=1) if as_json else text_of(found))


@app.command()
def profile(
    configfile: ConfigFile,
    out: Annotated[
        Path | None, typer.Option(help="Folder for all of it; `profile` in the work tree if none.")
    ] = None,
) -> None:
    """Sum up what every rule and step took: a table, pictures, a page, what to ask for."""
    from mrmill.profile.page import write_profile
    from mrmill.profile.suggest import fragment
    from mrmill.profile.table import read_profile

    config = load_config(configfile)
    work = _work_tree(config)
    found = read_profile(work)
    page = write_profile(found, config.dataset.name, out or work.profile)
    print(fragment(found.suggestions))
    console.print(page, highlight=False, soft_wrap=True)


@app.command()
def explain(
    target: Annotated[str, typer.Argument(help="STUDY, STUDY/SERIES, file name or series_key.")],
    configfile: ConfigFile,
    identified: Annotated[
        bool, typer.Option("--identified", help="With what identifies the patient.")
    ] = False,
    every_rule: Annotated[bool, typer.Option("--all", help="Every rule that was tried.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Tell what became of a study or series, and why."""
    from mrmill.explain import explain as tell
    from mrmill.explain.text import WARNING, text_of

    story = tell(load_config(configfile), target, identified)
    if identified:
        errors.print(WARNING, style="red")
    print(story.as_json() if as_json else text_of(story, every_rule))


@app.command()
def retry(
    configfile: ConfigFile,
    reason: Annotated[str, typer.Option(help="Only this reason code (error, killed).")] = "",
    batch: Annotated[str, typer.Option(help="Only this batch.")] = "",
) -> None:
    """Open failed studies again; the next run works on them."""
    from mrmill.run import alone, reopen_failed

    config = load_config(configfile)
    with alone(config):
        opened = reopen_failed(_work_tree(config), reason, batch)
    console.print(f"{opened} studies are open again; `mrmill run` works on them")


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A release tree, local or downloaded.")],
    fast: Annotated[bool, typer.Option("--fast", help="Structure only; opens no image.")] = False,
    columns: Annotated[
        Path | None, typer.Option(help="Table of header columns it was made with, if one's own.")
    ] = None,
) -> None:
    """Hold a release against its checksums, tables and layout."""
    from mrmill.columns import load_columns
    from mrmill.verify import verify_release

    problems = verify_release(path, fast=fast, columns=load_columns(columns) if columns else None)
    for problem in problems:
        print(problem)
    print(f"{path}: {len(problems)} problems" if problems else f"{path}: verified")
    raise typer.Exit(bool(problems))


@app.command()
def classify(
    headers: Annotated[Path, typer.Option(help="JSON lines, each with id and a BIDS sidecar.")],
    out: Annotated[Path, typer.Option(help="CSV with one row per series.")],
    site_rules: Annotated[
        Path | None, typer.Option(help="A site's own rules, tried before all others.")
    ] = None,
) -> None:
    """Say what each series is, from its header alone."""
    from mrmill.curate.classify import classify_file, load_rules

    count = classify_file(headers, out, load_rules(site_rules=site_rules))
    console.print(f"{count} series classified in {out}", highlight=False, soft_wrap=True)


@app.command()
def picture(
    release: Annotated[Path, typer.Argument(help="A release tree.")],
    out: Annotated[Path, typer.Argument(help="Folder for one PNG per study.")],
    study: Annotated[list[str], typer.Option(help="Only these studies.")] = [],  # noqa: B006
) -> None:
    """Draw released studies: masks, defacing, co-registration, atlas."""
    from mrmill.layout import ReleaseTree
    from mrmill.pictures import studies_of, study_picture
    from mrmill.verify import name_of_release

    tree = ReleaseTree(release, name_of_release(release))
    for study_uid in study or studies_of(tree):
        study_picture(tree, study_uid, out / f"{study_uid}.png")
        console.print(out / f"{study_uid}.png", highlight=False)


@app.command()
def phantom(
    folder: Annotated[Path, typer.Argument(help="Where the export is written.")],
    preset: Annotated[str, typer.Option(help="demo or tiny.")] = "demo",
    kind: Annotated[str, typer.Option(help="dicom or nifti.")] = "dicom",
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Make an export of phantom heads, with the truth about each beside it."""
    from mrmill.phantom import make_export

    make_export(folder, preset=preset, kind=kind, seed=seed)
    console.print(f"phantom export in {folder}")


@app.command(hidden=True)
def docs() -> None:
    """Write what is generated from the models and tables (for developers)."""
    from mrmill.generated import write_all

    for path in write_all(ROOT):
        console.print(path.relative_to(ROOT), highlight=False)


def _work_tree(config: Config):
    from mrmill.layout import WorkTree

    return WorkTree(config.work)
