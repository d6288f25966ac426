"""One function per system call: typed arguments, errno and path in every error, no policy.

Knows nothing of containers. Standard library only, so that the launcher stays small.
"""
