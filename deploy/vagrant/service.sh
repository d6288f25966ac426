#!/bin/sh
# Have a first service on the cluster of the Vagrantfile, unless it is there, and show it.
#
#   service.sh REPLICAS    with which it starts; later it is yours to scale
set -eu

estiba service inspect hello >/dev/null 2>&1 ||
  estiba service create --name hello --replicas "$1" \
    --limit-memory 64m --limit-cpu 0.5 --limit-pids 50 registry.estiba:5000/hello
estiba node ls
estiba service ps hello
