"""Print where the replicas of a service answer: name, pid of its node's agent, address.

replicas.py ESTIBA FOLDER SERVICE
"""

import json
import subprocess
import sys
from typing import Any


def ask(*words: str) -> Any:
    done = subprocess.run([*words, "-o", "json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    estiba, folder, service = sys.argv[1:]
    programs = ask(estiba, "dev", "status", "--dir", folder)["programs"]
    pids = {program["name"]: program["pid"] for program in programs}
    names = {node["metadata"]["id"]: node["metadata"]["name"] for node in ask(estiba, "node", "ls")}
    for task in ask(estiba, "service", "ps", service):
        status = task.get("status", {})
        if status.get("state") == "TASK_STATE_RUNNING" and status.get("address"):
            agent = pids[f"{names[task['node_id']]}-agent"]
            sys.stdout.write(f"{service}.{task['slot']} {agent} {status['address']}\n")


if __name__ == "__main__":
    main()
