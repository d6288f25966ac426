"""What estibad measures of itself, in the registry it is given."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from controlplane.authority.admission import Outcome

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Instruments:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.leader = Gauge(
            "estiba_leader",
            "1 on the member that leads the control plane, 0 on the others.",
            registry=registry,
        )
        self.store_request = Histogram(
            "estiba_store_request_seconds",
            "How long requests to etcd took.",
            ["operation"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        self.scheduling_latency = Histogram(
            "estiba_scheduling_latency_seconds",
            "From the change that called for a task, or made room for it, to its placement stored.",
            buckets=BUCKETS_S,
            registry=registry,
        )
        self.reconcile = Histogram(
            "estiba_reconcile_seconds",
            "How long it took to plan the services that waited, and to store the plan.",
            buckets=BUCKETS_S,
            registry=registry,
        )
        self.reconciled = Counter(
            "estiba_reconciled_services",
            "How many times a service was looked at and decided on.",
            registry=registry,
        )
        self.sessions = Gauge(
            "estiba_sessions",
            "Sessions of agents with this member.",
            registry=registry,
        )
        self.denied_calls = Counter(
            "estiba_denied_calls",
            "Calls refused because the caller may not make them.",
            registry=registry,
        )
        self.join_requests = Counter(
            "estiba_join_requests",
            "Requests of machines to join, by how they ended.",
            ["outcome"],
            registry=registry,
        )
        for outcome in Outcome:
            self.join_requests.labels(outcome)
        self.foreign_reports = Counter(
            "estiba_foreign_reports",
            "Reports of nodes on tasks that are not theirs, which were dropped.",
            registry=registry,
        )

    def count_join(self, outcome: Outcome) -> None:
        self.join_requests.labels(outcome).inc()

    def observe_store_request(self, operation: str, seconds: float) -> None:
        self.store_request.labels(operation).observe(seconds)
