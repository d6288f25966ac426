"""The flags that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from controlplane.cli import params

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_TIMEOUT = "5m"


def waiting(command: F) -> F:
    """Give a command that changes services its --detach and --timeout."""
    command = click.option(
        "--timeout",
        type=params.DURATION,
        default=DEFAULT_TIMEOUT,
        show_default=True,
        help="How long to wait, such as 30s or 2m.",
    )(command)
    return click.option(
        "-d", "--detach", is_flag=True, help="Return when the wish is stored; do not wait."
    )(command)


_CONTAINER = [
    click.option(
        "--replicas", type=params.COUNT, help="Tasks to keep running; a new service has 1."
    ),
    click.option("--entrypoint", type=params.WORDS, help="Replaces the image's entry point."),
    click.option("-u", "--user", help="USER[:GROUP], names or numbers."),
    click.option("-w", "--workdir", help="Working directory inside the container."),
    click.option("--hostname", help="Host name inside the container."),
    click.option("--stop-signal", help="Signal that asks it to end, such as SIGINT."),
    click.option(
        "--stop-grace-period",
        type=params.DURATION,
        help="From the stop signal to SIGKILL, such as 30s.",
    ),
    click.option("--limit-cpu", type=params.CPUS, help="Processors it may use, such as 0.5."),
    click.option("--limit-memory", type=params.BYTES, help="Memory it may use, such as 64m."),
    click.option("--limit-pids", type=params.COUNT, help="Processes and threads it may have."),
    click.option("--reserve-cpu", type=params.CPUS, help="Processors set aside on its node."),
    click.option("--reserve-memory", type=params.BYTES, help="Memory set aside on its node."),
    click.option("--health-cmd", help="Healthy while this shell command succeeds inside."),
    click.option(
        "--health-http",
        type=params.HTTP,
        metavar="PORT[/PATH]",
        help="Healthy while GET answers 200 to 399, such as 8080/ready.",
    ),
    click.option(
        "--health-tcp", type=params.PORT, metavar="PORT", help="Healthy while it accepts there."
    ),
    click.option("--health-interval", type=params.DURATION, help="Between two checks: 30s."),
    click.option("--health-timeout", type=params.DURATION, help="For one check: 30s."),
    click.option("--health-retries", type=params.COUNT, help="Failures that make it unhealthy: 3."),
    click.option(
        "--health-start-period",
        type=params.DURATION,
        help="How long after the start failures do not count: 0s.",
    ),
]


def container(command: F) -> F:
    """Give a command the flags for what a task runs, under which limits."""
    for option in reversed(_CONTAINER):
        command = option(command)
    return command
