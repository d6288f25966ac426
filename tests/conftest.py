"""For all layers: which tests are of this machine, how many must pass, and a good end."""

import os
import re
import signal

import hypothesis
import pytest

from tests.support.cgroups import VERSION

# How long an example takes says more of the machine than of what is tested.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--at-least",
        type=int,
        default=0,
        metavar="N",
        help="fail unless N tests pass: whatever keeps them from being found or chosen is noticed",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Take SIGTERM as Ctrl-C: fixtures end their servers, clusters and namespaces.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for line in (
        "cgroup(version): only where containers have cgroups of this version",
        "linux_since(major, minor): only on this kernel and those after it",
        "linux_before(major, minor): only on kernels before this one",
    ):
        config.addinivalue_line("markers", line)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the tests of this machine: what exists in one version only is tested in that."""
    others = [item for item in items if not _belongs_here(item)]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def _belongs_here(item: pytest.Item) -> bool:
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert release
    linux = (int(release[1]), int(release[2]))
    return all(
        (
            all(marker.args == (VERSION,) for marker in item.iter_markers("cgroup")),
            all(marker.args <= linux for marker in item.iter_markers("linux_since")),
            all(marker.args > linux for marker in item.iter_markers("linux_before")),
        )
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    wanted = session.config.getoption("--at-least")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or exitstatus != pytest.ExitCode.OK:
        return
    passed = len(reporter.stats.get("passed", []))
    if passed < wanted:
        reporter.write_line(f"\n{passed} tests passed, not {wanted}: some were not found", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
