"""The node's part of the networks: decided in `topology`, carried out by `network.Network`."""
