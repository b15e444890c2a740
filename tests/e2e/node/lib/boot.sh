# Up and down. Sourced by `node`.

# The first process: private mounts, then reap what is left to it until it is killed.
init() {
  # /proc is still the machine's, so this is the pid by which the machine knows us.
  local pid rest place; read -r pid rest < /proc/self/stat
  trap 'exit 0' TERM
  mount --make-rprivate / && mount --make-rshared /   # a peer group of our own: nothing leaks out
  mount -t proc proc /proc
  mount -t tmpfs tmpfs /run                           # containerd, runc and CNI keep sockets and namespaces here
  while read -r place; do
    mkdir -p "$place" "$RUN/fixed$place"
    mount --bind "$RUN/fixed$place" "$place"
  done < <(fixed_places)
  ip link set lo up
  awk '{sub(/.*\) /, ""); print pid, $20}' pid="$pid" /proc/1/stat > "$RUN/init.pid.new"
  mv "$RUN/init.pid.new" "$RUN/init.pid"
  while :; do sleep 1000 & wait $! || true; done
}

# What kubelet and the CNI library have hard-coded: inside the node each is a folder of RUN. Outside they stay behind, empty:
# removing a folder of which another node has made a mount point would unmount it there.
fixed_places() { printf '%s\n' /var/lib/kubelet /var/lib/cni /var/log/pods /var/log/containers; }

namespaces() {
  local pid
  setsid unshare --fork --pid --mount --net "$HERE/node" _init < /dev/null > "$RUN/log/init.log" 2>&1 9>&- &
  disown
  for _ in {1..100}; do init_pid > /dev/null && break; sleep .05; done
  pid=$(init_pid) || { cat "$RUN/log/init.log" >&2; die "no namespaces"; }
  ip link add "$LINK" type veth peer name eth0 netns "$pid"
  ip addr add "$HOST_IP/30" dev "$LINK"
  ip link set "$LINK" up
  inside ip addr add "$NODE_IP/30" dev eth0
  inside ip link set eth0 up
  inside ip route add default via "$HOST_IP"
  # Pods reach each other by a Service's address only if bridged packets pass the firewall's rules.
  inside sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1 net.ipv4.conf.all.route_localnet=1
  # This machine reaches pods and Services by their addresses.
  ip route add "$PODS" via "$NODE_IP"
  ip route add "$SERVICES" via "$NODE_IP"
}

cgroups() { # one top folder in each hierarchy, so that down knows what to remove
  local root
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then echo "/sys/fs/cgroup/$CGROUP"; return; fi
  for root in /sys/fs/cgroup/*/; do [ ! -f "$root/cgroup.procs" ] || echo "$root$CGROUP"; done
}

make_cgroups() {
  local folder top=/sys/fs/cgroup/cgroup.subtree_control
  # Version 2: what the kubelet needs is handed down from the root, where systemd has not done so.
  if [ -f "$top" ]; then echo "+cpu +cpuset +io +memory +pids" > "$top" 2>/dev/null || true; fi
  while read -r folder; do mkdir -p "$folder"; done < <(cgroups)
}

# Images are unpacked, and etcd writes, in memory when it has room, to boot faster. Volumes of pods stay on
# the disk: on a tmpfs every byte that a pod writes into an emptyDir counts as its memory, up to the OOM kill.
place_of_images() {
  local free=0 available
  if [ -n "${NODE_FAST:-}" ]; then echo "$NODE_FAST/tarmill-node-$ID"; return; fi
  if [ -w /dev/shm ] && ! findmnt -no OPTIONS -T /dev/shm | grep -qw noexec; then
    free=$(df --output=avail -k /dev/shm | tail -n 1)
  fi
  available=$(awk '/^MemAvailable/ {print $2}' /proc/meminfo)
  if [ "$free" -gt 4000000 ] && [ "$available" -gt 8000000 ]; then
    echo "/dev/shm/tarmill-node-$ID"
  else
    echo "$RUN/fast"
  fi
}
images() { readlink "$RUN/images"; }

check_programs() {
  local missing=() pair
  for pair in etcd:etcd-server containerd:containerd runc:runc ctr:containerd ip:iproute2 iptables:iptables \
      conntrack:conntrack openssl:openssl nsenter:util-linux sysctl:procps /usr/lib/cni/bridge:containernetworking-plugins; do
    command -v "${pair%:*}" > /dev/null || missing+=("${pair#*:}")
  done
  [ ${#missing[@]} = 0 ] || die "Debian packages are missing: ${missing[*]} ('make kube-node' installs them)"
}

check() {
  local name
  check_programs
  [ "$(id -u)" = 0 ] || die "needs root, for namespaces and cgroups"
  for name in kube dns pause; do [ -x "$(binary $name)" ] || die "$name is not built yet: make kube-node"; done
}

load() { # ARCHIVE...
  local archive
  for archive; do
    [ -r "$archive" ] || die "no archive $archive"
    ctr images import "$archive" >&2
  done
}

healthy() {
  local part; init_pid > /dev/null || return 1
  for part in "${PARTS[@]}"; do alive "$part" || return 1; done
  kubectl get --raw /readyz > /dev/null 2>&1
}

up() { # [ARCHIVE...]
  check_programs
  if healthy; then
    say "is up already"
    load "$@"
    echo "$RUN/admin.kubeconfig"
    return
  fi
  [ -d "$RUN" ] || ! ip link show "$LINK" > /dev/null 2>&1 || die "$LINK exists: a node $ID of another NODE_CACHE is up"
  down
  trap failed EXIT
  boot "$@"
  trap - EXIT
  echo "$RUN/admin.kubeconfig"
}

boot() { # [ARCHIVE...]
  local began=$SECONDS loading ready='{.status.conditions[?(@.type=="Ready")].status}'
  mkdir -p "$RUN/log"
  ln -s "$(place_of_images)" "$RUN/images"
  mkdir -p "$(images)"
  namespaces
  make_cgroups
  certificates
  configs
  start etcd
  start containerd
  await containerd 30 ctr version
  load "$CACHE/bin/pause.tar" "$@" 9>&- &
  loading=$!
  await etcd 30 inside bash -c 'exec 3<>/dev/tcp/127.0.0.1/2379'
  start apiserver
  await "API server" 60 kubectl get --raw /readyz
  local part; for part in controllers scheduler kubelet proxy dns; do start "$part"; done
  # shellcheck disable=SC2016  # the inner shell expands it
  await "ready node" 60 bash -c '[ "$("$@")" = True ]' - \
    "$(binary kube)" kubectl --kubeconfig "$RUN/admin.kubeconfig" get node node -o "jsonpath=$ready"
  await "service account" 30 kubectl get serviceaccount default
  await "DNS answer" 30 "$(binary dns)" lookup kubernetes.default.svc.cluster.local "$NODE_IP"
  wait $loading || die "image archives could not be loaded"
  say "up in $((SECONDS - began)) s"
}

failed() { # a boot that fails leaves its logs, and nothing else
  rm -rf "$CACHE/failed"
  cp -r "$RUN/log" "$CACHE/failed" 2>/dev/null || true
  down
  say "boot failed; all logs are in $CACHE/failed"
}

down() {
  local pid folder
  [ -d "$RUN" ] || return 0   # made first and removed last: without it nothing here is ours
  if pid=$(init_pid); then
    kill -9 "$pid"
    for _ in {1..200}; do [ -d "/proc/$pid" ] || break; sleep .05; done
  fi
  ip link del "$LINK" 2>/dev/null || true   # its routes go with it
  while read -r folder; do
    for _ in {1..50}; do   # a cgroup is busy until the kernel has reaped its last process
      [ -d "$folder" ] || break
      find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null || sleep .1
    done
    [ ! -d "$folder" ] || say "cannot remove $folder"
  done < <(cgroups)
  if [ -L "$RUN/images" ]; then rm -rf "$(images)"; fi
  rm -rf "$RUN"
}
