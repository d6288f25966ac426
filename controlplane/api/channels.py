"""Options of gRPC that every connection of the control plane has."""

# Assignments of a node and lists are far smaller; gRPC's default of 4 MiB is not by much.
LARGEST_MESSAGE_BYTES = 64 * 1024 * 1024

_SIZES: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
)

# A peer that vanished without a word is noticed within seconds.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    *_SIZES,
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_SIZES,
    # Whoever has connected must be who it is within this time; gRPC would wait for two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Clients that ping more often than gRPC likes by default are not sent away.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Two members on one machine must not share a port by accident.
    ("grpc.so_reuseport", 0),
)
