"""What can go wrong between a request and a running container, each with its stage."""

# What an image can make us quote must still fit into a message between programs.
MAX_MESSAGE_CHARACTERS = 1000


class ContainerError(Exception):
    """A container cannot be made, started or reached.

    Attributes:
        stage: where it went wrong, one of STAGES.
        message: one sentence for the user, cut if it quotes too much.
    """

    def __init__(self, stage: str, message: str) -> None:
        if len(message) > MAX_MESSAGE_CHARACTERS:
            message = f"{message[:MAX_MESSAGE_CHARACTERS]}..."
        super().__init__(message)
        self.stage = stage
        self.message = message


STAGES = {
    "request": "the request itself: an unknown container, a state in which it cannot be done",
    "bundle": "config.json cannot be read or asks for what is not supported",
    "limits": "the kernel refuses a limit, or this node lacks the controller",
    "cgroup": "the cgroup cannot be made or entered",
    "namespaces": "the new process or its namespaces",
    "root": "layers, overlay, mounts, devices",
    "user": "the user or group is not in the image",
    "workdir": "the working directory",
    "command": "the program cannot be executed",
    "launcher": "the launcher is away, or went away before it answered",
}
