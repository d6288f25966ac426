#!/bin/sh
# Have what Estiba does not bring run beside the control plane of the Vagrantfile: a registry with a
# small image, and Prometheus. Both are Debian's, with configurations of their own.
#
#   beside.sh ADDRESS    where the other machines, and yours, reach this one
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
address=$1
python=/opt/estiba/current/bin/python

die() {
  echo "beside: $*" >&2
  exit 1
}

# shellcheck source=deploy/lib/packages.sh
. "$root/deploy/lib/packages.sh"

# adjust UNIT: read what its start should be from standard input; start it, if need be again.
adjust() {
  mkdir -p "/etc/systemd/system/$1.d"
  cat >"/etc/systemd/system/$1.d/estiba.conf" <<END
[Unit]
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Restart=always
RestartSec=1s
ExecStart=
$(cat)
END
  systemctl daemon-reload
  systemctl --quiet enable "$1"
  systemctl restart "$1"
}

install_packages docker-registry prometheus busybox-static

echo 'A registry, by the name registry.estiba:5000'
"$python" "$root/deploy/vagrant/certificate.py" \
  "$address" docker-registry /etc/docker/registry/estiba.pem
cat >/etc/docker/registry/estiba.yml <<END
version: 0.1
log:
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: /var/lib/docker-registry
http:
  addr: $address:5000
  tls:
    certificate: /etc/docker/registry/estiba.pem
    key: /etc/docker/registry/estiba.pem
END
adjust docker-registry.service <<END
ExecStart=/usr/bin/docker-registry serve /etc/docker/registry/estiba.yml
END
listening=
for _ in $(seq 300); do
  listening=$(ss --no-header --listening --tcp --numeric 'sport = :5000')
  [ -z "$listening" ] || break
  sleep 0.2
done
[ -n "$listening" ] || die 'the registry does not start: see journalctl -u docker-registry'
"$python" -m controlplane.cli.dev.sample \
  --registry "$address:5000" --ca /etc/estiba/ca.pem --name hello

echo 'Prometheus, which finds every program of the cluster through estibad'
folder=/etc/estiba/prometheus
sed 's#tls/##' "$root/deploy/prometheus/prometheus.yml" >"$folder/prometheus.yml"
chown -R prometheus: "$folder"
adjust prometheus.service <<END
ExecStart=/usr/bin/prometheus --config.file=$folder/prometheus.yml \\
  --storage.tsdb.path=/var/lib/prometheus/metrics2 --web.listen-address=$address:9090
END
