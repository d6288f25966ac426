"""Make a machine a control plane, or a node, and undo it: what it takes, and in which files."""
