"""The agent's errors: the class says whose move it is, the message is one sentence for a status.

AgentError
├── ConfigError         the configuration file is wrong: a person's move
├── LaunchError         this container cannot be made or started; others may
├── LauncherLostError   the launcher does not answer: ask again when it is back
├── ImageError          an image cannot be had now; the reason may pass
├── NetworkError        a container cannot be connected now
└── SessionError        this member cannot serve us: go to another
    ├── StaleError      it is behind what we have accepted
    └── RemovedError    this node was removed from the cluster

A task's message is the error's message, so it names the object and says what is wrong with it.
"""


class AgentError(Exception):
    """Root of this program's errors. Catch it only at a process boundary."""


class ConfigError(AgentError):
    """The configuration names something that cannot be; the message names the key."""


class LaunchError(AgentError):
    """The launcher could not make, start or enter one container.

    ``stage`` says how far it came, in the launcher's words, such as "exec".
    """

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


class LauncherLostError(AgentError):
    """The launcher does not answer; whether it did what was asked is told by its list."""


class ImageError(AgentError):
    """An image is not here and cannot be fetched; the message names it and says why."""


class NetworkError(AgentError):
    """A container cannot be connected to its network."""


class SessionError(AgentError):
    """A member of the control plane ended the session, or said what it must not."""


class StaleError(SessionError):
    """The member offers assignments from before those already accepted."""


class RemovedError(SessionError):
    """The node was removed from the cluster: nothing of it may run here."""


def first_of(faults: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first fault of a group, however deep it lies."""
    first = faults.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
