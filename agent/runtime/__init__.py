"""The container runtime: launcher, sandbox, cgroups, log pump.

Standard library and agent.kernel only: the launcher forks, so it must stay small and
must never hold a gRPC channel. README.md tells who owns what and what survives what.
"""
