"""What both programs share: the messages, the model, and a kit without orchestration."""

__version__ = "0.1.0"
