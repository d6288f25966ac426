"""Tools that know nothing of orchestration: clocks, queues, back-off, logs, TLS, HTTP serving."""
