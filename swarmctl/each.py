"""Commands that take several names: do what can be done, then fail for the rest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import click

from shoal.errors import SwarmError
from swarmctl.exits import EXIT_BY_CODE

ResultT = TypeVar("ResultT")


async def each(
    names: Iterable[str], work: Callable[[str], Awaitable[ResultT]]
) -> tuple[list[ResultT], list[SwarmError]]:
    """Results of `work` for every name in order, and the errors of those that failed."""
    results: list[ResultT] = []
    errors: list[SwarmError] = []
    for name in names:
        try:
            results.append(await work(name))
        except SwarmError as error:
            errors.append(error)
    return results, errors


def exit_with(errors: Iterable[SwarmError]) -> None:
    """Print every error; exit with the code of the first, if there is one."""
    code = 0
    for error in errors:
        click.echo(f"Error: {error.message}", err=True)
        code = code or EXIT_BY_CODE[error.code]
    if code:
        raise click.exceptions.Exit(code)
