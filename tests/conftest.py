"""For all layers: a run that is told to end tears down what it made."""

import signal


def pytest_configure() -> None:
    """Take SIGTERM as Ctrl-C: fixtures end their servers, clusters and namespaces."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
