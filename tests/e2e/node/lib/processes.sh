# The node's namespaces and the processes in them. Sourced by `node`.

# The first process of the node stands in a file as "pid start-time": the time tells a reused pid apart.
started_at() { awk '{sub(/.*\) /, ""); print $20}' "/proc/$1/stat" 2>/dev/null; }
init_pid() {
  local pid at
  read -r pid at 2>/dev/null < "$RUN/init.pid" || return 1
  [ -n "$at" ] && [ "$(started_at "$pid")" = "$at" ] && echo "$pid"
}
is_up() { init_pid > /dev/null || die "node $ID is not up"; }

inside() { nsenter -t "$(init_pid)" -m -n -p -- "$@"; }

# Pids are the node's own, so they are looked up in its own /proc. A zombie has ended, though init has yet to reap it.
alive() { # PART
  local pid; pid=$(cat "$RUN/$1.pid" 2>/dev/null) && [ -n "$pid" ] \
    && grep -q '^State:[[:space:]]*[^Z[:space:]]' "/proc/$(init_pid)/root/proc/$pid/status" 2>/dev/null
}

# No descriptor of the caller's is kept: neither one that someone reads to the end, nor a lock.
launch() { # PART COMMAND...
  local part=$1 more=NODE_ARGS_${1^^}; shift
  # shellcheck disable=SC2086  # the further flags are several words
  # shellcheck disable=SC2016  # the inner shell expands them
  inside setsid bash -c 'echo $$ > "$1"; shift; exec "$@"' - "$RUN/$part.pid" "$@" ${!more-} \
    < /dev/null >> "$RUN/log/$part.log" 2>&1 9>&- &
  disown
}

stop() { # PART [SIGNAL]
  alive "$1" || return 0
  local pid signal; pid=$(cat "$RUN/$1.pid")
  for signal in ${2:-TERM KILL}; do
    inside kill -s "$signal" "$pid"
    for _ in {1..50}; do alive "$1" || return 0; sleep .1; done
  done
  die "cannot stop $1"
}

tails() { # [PART...]
  local part; for part in "${@:-${PARTS[@]}}"; do
    [ -s "$RUN/log/$part.log" ] || continue
    echo "=== $part"
    tail -n "${LINES_SHOWN:-15}" "$RUN/log/$part.log" | cut -c1-400
  done >&2
}

# Wait for a command to succeed; fail at once when a part that was launched has ended.
await() { # WHAT SECONDS COMMAND...
  local what=$1 limit=$((SECONDS + $2)) part; shift 2
  until "$@" > /dev/null 2> "$RUN/log/await.err"; do
    for part in "${PARTS[@]}"; do
      [ ! -f "$RUN/$part.pid" ] || alive "$part" || { tails "$part"; die "$part ended while waiting for $what"; }
    done
    if [ $SECONDS -ge $limit ]; then cat "$RUN/log/await.err" >&2; tails; die "no $what in time"; fi
    sleep .1
  done
}

kubectl() { "$(binary kube)" kubectl --kubeconfig "$RUN/admin.kubeconfig" --request-timeout 5s "$@"; }
ctr() { command ctr -a "$RUN/containerd.sock" -n k8s.io "$@"; }

start() { # PART
  local kube pki=$RUN/pki; kube=$(binary kube)
  alive "$1" && return
  case $1 in
    etcd) # without fsync: nothing here has to outlive the machine
      launch etcd etcd --data-dir "$(images)/etcd" --listen-client-urls http://127.0.0.1:2379 \
        --advertise-client-urls http://127.0.0.1:2379 --unsafe-no-fsync --log-level warn ;;
    apiserver)
      launch apiserver "$kube" kube-apiserver --etcd-servers http://127.0.0.1:2379 --secure-port 6443 \
        --advertise-address "$NODE_IP" --service-cluster-ip-range "$SERVICES" --allow-privileged \
        --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
        --client-ca-file "$pki/ca.crt" --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
        --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$pki/sa.key" \
        --service-account-signing-key-file "$pki/sa.key" --kubelet-preferred-address-types InternalIP \
        --kubelet-client-certificate "$pki/admin.crt" --kubelet-client-key "$pki/admin.key" \
        --kubelet-certificate-authority "$pki/ca.crt" ;;
    controllers) # the volume plug-in folder's default, under /usr, may be read-only
      launch controllers "$kube" kube-controller-manager --kubeconfig "$RUN/controllers.kubeconfig" \
        --leader-elect=false --kube-api-qps 200 --kube-api-burst 400 --use-service-account-credentials \
        --root-ca-file "$pki/ca.crt" --service-account-private-key-file "$pki/sa.key" \
        --flex-volume-plugin-dir /var/lib/kubelet/volumeplugins \
        --cluster-signing-cert-file "$pki/ca.crt" --cluster-signing-key-file "$pki/ca.key" ;;
    scheduler) launch scheduler "$kube" kube-scheduler --kubeconfig "$RUN/scheduler.kubeconfig" --leader-elect=false ;;
    containerd) launch containerd containerd -c "$RUN/containerd.toml" ;;
    kubelet)
      launch kubelet "$kube" kubelet --config "$RUN/kubelet.yaml" --kubeconfig "$RUN/kubelet.kubeconfig" \
        --hostname-override node --node-ip "$NODE_IP" --v=1 ;;
    proxy) launch proxy "$kube" kube-proxy --config "$RUN/proxy.yaml" ;;
    dns) launch dns "$(binary dns)" -conf "$RUN/Corefile" ;;
    netpol) launch netpol python3 "$HERE/netpol.py" "https://$NODE_IP:6443" "$pki" ;;
    *) die "no part named $1; one of: ${PARTS[*]} netpol" ;;
  esac
}
