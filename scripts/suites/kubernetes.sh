# shellcheck shell=bash
# The Helm chart and the manifests in deploy/: Helm renders seven sets of values; the schemas of eleven versions of Kubernetes and the types
# of KEDA, Prometheus' operator and the Gateway API accept the objects; wrong values are refused; and the real program runs with the
# rendered variables, is found by a real dnsmasq, and loses no request when its pod is deleted. It needs no cluster.
# `scripts/test.sh kubernetes --write` renders the committed manifests and the table of values again instead.
export PATH=$PATH:/usr/sbin # Debian's directory for daemons
need npm npm
need dnsmasq dnsmasq-base
need promtool prometheus
install demo,test,kubernetes
export PATH=$PWD/.venv/bin:$PATH PYTHONPATH=$PWD/tests
if [[ "${1-}" == --write ]]; then
  exec python -m kubernetes.generated
fi
if [[ ! -e .venv-kubernetes/installed ]]; then # types that are generated from the CustomResourceDefinitions
  npm install --prefix .venv-kubernetes --no-audit --no-fund typescript@5 @kubernetes-models/keda@2.0.0 \
    @kubernetes-models/gateway-api@2.0.0 @kubernetes-models/prometheus-operator@6.0.0
  touch .venv-kubernetes/installed
fi
exec python -m pytest tests/kubernetes "$@"
