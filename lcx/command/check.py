"""`lcx check`: what the laws say of the classes that an experiment file brings along."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lcx.checking import Finding, findings
from lcx.checking.laws import LAWS
from lcx.experiment import choose
from lcx.experiment_file import load
from lcx.wording import plural, side_by_side


def check(file: Path, only: str | None, assignments: tuple[str, ...]) -> int:
    """`lcx check`: the exit code."""
    experiments, chosen = choose(load(file).experiments, only, assignments)
    console = Console()
    with console.status("trying classes of your own"):
        found = list(findings({name: experiments[name] for name in chosen}))
    if not found:
        console.print(f"{file}: every part of its models is lcx's own, and tested there")
        return 0
    for table in tables_of(found, console.width):
        console.print(table)
    for finding in found:
        for law, said in finding.laws.items():
            if said:
                console.print(_line(finding, law, said), soft_wrap=True, highlight=False)
    if wrong := sum(len(finding.broken) for finding in found):
        console.print(f"{plural(wrong, 'law')} broken")
    return int(wrong > 0)


def tables_of(found: list[Finding], width: int) -> list[Table]:
    """A line for each law, a column for each part; below one another where they are too many."""
    room = width - max(map(len, LAWS)) - 2
    columns = side_by_side([len(finding.name) + 2 for finding in found], room)
    return [_table(found[together]) for together in columns]


def _table(found: list[Finding]) -> Table:
    table = Table(box=None)
    table.add_column("", no_wrap=True)
    for finding in found:
        table.add_column(escape(finding.name), justify="center", overflow="fold")
    for law in LAWS:
        table.add_row(law, *(_mark(finding, law) for finding in found))
    return table


def _mark(finding: Finding, law: str) -> str:
    if law not in finding.laws:
        return "[dim]–[/]"
    if finding.laws[law] is None:
        return "[green]✓[/]"
    return "[bold red]✗[/]" if law in finding.required else "[yellow]no[/]"


def _line(finding: Finding, law: str, said: str) -> str:
    if law in finding.required:
        return f"[bold red]{law}:[/] {finding.variant}: {escape(said)}"
    return f"[yellow]{law}:[/] {escape(said)} [dim](no variant cuts sequences: mesh.seq is 1)[/]"
