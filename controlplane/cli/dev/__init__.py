"""The local cluster: starts the same programs as on real machines, by name, and imports none."""
