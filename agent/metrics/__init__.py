"""What the node and its containers use: for Prometheus at each scrape, for users when they ask.

Nothing is measured in between. `sources` says what is needed from the rest of the agent.
"""
