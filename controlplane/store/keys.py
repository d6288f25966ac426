"""Where each object lives in the store. Pure.

One writer for each key: task/ is the leader's, task-status/ the dispatcher's, and so on.
Everything lies under one prefix, so one watch sees every change in order.
"""

ROOT = "/estiba/"

CLUSTER = ROOT + "cluster"
LEADER = ROOT + "leader"

# The users', through the API. service-name/ and node-name/ make names unique.
SERVICES = ROOT + "service/"
SERVICE_NAMES = ROOT + "service-name/"
NODES = ROOT + "node/"
NODE_NAMES = ROOT + "node-name/"
NODES_REMOVED = ROOT + "node-removed/"

# Made by users, changed by whichever member admits a node; each ends with a lease of its own.
JOIN_TOKENS = ROOT + "join-token/"

# One for each template generation of a service; written with the service, deleted by the leader.
TEMPLATES = ROOT + "template/"

# The leader's.
TASKS = ROOT + "task/"
BLOCKS = ROOT + "block/"
# Compared by every write of a plan. Once it has changed, none of the earlier ones can still happen.
PLAN = ROOT + "plan"

# The dispatcher's: of the member that holds the node's session.
TASK_STATUSES = ROOT + "task-status/"
NODE_STATUSES = ROOT + "node-status/"
PRESENCES = ROOT + "presence/"

# Each member's own, attached to its lease.
MEMBERS = ROOT + "member/"


def service(service_id: str) -> str:
    return SERVICES + service_id


def service_name(namespace: str, name: str) -> str:
    return f"{SERVICE_NAMES}{namespace}/{name}"


def template(service_id: str, generation: int) -> str:
    # Padded, so that the store's order is the order of generations.
    return f"{TEMPLATES}{service_id}/{generation:010d}"


def task(task_id: str) -> str:
    return TASKS + task_id


def task_status(task_id: str) -> str:
    return TASK_STATUSES + task_id


def node(node_id: str) -> str:
    return NODES + node_id


def node_name(name: str) -> str:
    return NODE_NAMES + name


def node_removed(node_id: str) -> str:
    return NODES_REMOVED + node_id


def join_token(token_id: str) -> str:
    return JOIN_TOKENS + token_id


def node_status(node_id: str) -> str:
    return NODE_STATUSES + node_id


def presence(node_id: str) -> str:
    return PRESENCES + node_id


def block(network_id: str, node_id: str) -> str:
    return f"{BLOCKS}{network_id}/{node_id}"


def member(member_id: str) -> str:
    return MEMBERS + member_id
