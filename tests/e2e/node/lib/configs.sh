# Certificates and configuration of the parts, written into the node's folder. Sourced by `node`.

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$RUN/pki/$1.key"; }

cert() { # NAME SUBJECT [ALTERNATIVE NAMES]: a certificate for both sides of TLS, and a kubeconfig that uses it
  local base=$RUN/pki/$1 ca=$RUN/pki/ca
  key "$1"
  openssl req -new -key "$base.key" -subj "$2" -out "$base.csr"
  openssl x509 -req -in "$base.csr" -CA "$ca.crt" -CAkey "$ca.key" -CAcreateserial -days 365 -out "$base.crt" 2>/dev/null \
    -extfile <(printf 'extendedKeyUsage=serverAuth,clientAuth\n%s' "${3:+subjectAltName=$3}")
  cat > "$RUN/$1.kubeconfig" <<Y
apiVersion: v1
kind: Config
clusters: [{name: node, cluster: {server: "https://$NODE_IP:6443", certificate-authority-data: $(base64 -w0 "$ca.crt")}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$base.crt"), client-key-data: $(base64 -w0 "$base.key")}}]
contexts: [{name: node, context: {cluster: node, user: $1}}]
current-context: node
Y
  chmod 600 "$RUN/$1.kubeconfig"
}

certificates() {
  mkdir -m 700 "$RUN/pki"
  key ca
  openssl req -x509 -new -key "$RUN/pki/ca.key" -days 365 -subj /CN=node-ca -out "$RUN/pki/ca.crt"
  local name=kubernetes.default.svc
  cert apiserver /CN=kube-apiserver \
    "IP:$NODE_IP,IP:$API_SERVICE,DNS:kubernetes,DNS:kubernetes.default,DNS:$name,DNS:$name.cluster.local"
  cert admin /O=system:masters/CN=admin
  cert controllers /CN=system:kube-controller-manager
  cert scheduler /CN=system:kube-scheduler
  cert proxy /CN=system:kube-proxy
  cert kubelet /O=system:nodes/CN=system:node:node "IP:$NODE_IP,DNS:node"
  openssl genrsa -out "$RUN/pki/sa.key" 2048 2>/dev/null
}

configs() {
  mkdir -p "$RUN/cni"
  pod_network > "$RUN/cni/10-pods.conflist"
  containerd_config > "$RUN/containerd.toml"
  kubelet_config > "$RUN/kubelet.yaml"
  proxy_config > "$RUN/proxy.yaml"
  dns_config > "$RUN/Corefile"
  echo "nameserver $NODE_IP" > "$RUN/resolv.conf"
}

pod_network() {
  cat <<Y
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$PODS"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "$RUN/cni/ipam"}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
Y
}

# restrict_oom_score_adj: without the capability SYS_RESOURCE (a container may lack it) no process can lower its score
# for the OOM killer, and every pod would fail with "can't get final child's PID from pipe: EOF".
containerd_config() {
  cat <<Y
version = 2
root = "$(images)/containerd"
state = "/run/containerd"
[grpc]
  address = "$RUN/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "localhost/pause:1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$RUN/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
Y
}

# failCgroupV1: a machine with version 1 only is welcome (Kubernetes up to 1.35 runs there, as does Debian's containerd 1.6).
# Evictions begin when the machine is really full, or tests would depend on how full its disk happens to be.
kubelet_config() {
  cat <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $RUN/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $RUN/pki/kubelet.crt
tlsPrivateKeyFile: $RUN/pki/kubelet.key
containerRuntimeEndpoint: unix://$RUN/containerd.sock
volumePluginDir: /var/lib/kubelet/volumeplugins
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
failCgroupV1: false
failSwapOn: false
clusterDNS: [$NODE_IP]
clusterDomain: cluster.local
resolvConf: $RUN/resolv.conf
evictionHard: {memory.available: 200Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
maxPods: 100
syncFrequency: 5s
Y
}

# The kernel's table of connections is the machine's: it is left as it is.
proxy_config() {
  cat <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {kubeconfig: $RUN/proxy.kubeconfig}
clusterCIDR: $PODS
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
hostnameOverride: node
Y
}

# Names outside the cluster do not exist here; a refusal would make clients ask again for seconds.
# Two blocks, since in one the template would answer before the kubernetes plug-in.
dns_config() {
  cat <<Y
cluster.local:53 {
    bind $NODE_IP
    errors
    kubernetes {
        kubeconfig $RUN/admin.kubeconfig
    }
}
.:53 {
    bind $NODE_IP
    template ANY ANY {
        rcode NXDOMAIN
    }
}
Y
}
