#!/bin/sh
# Load the store on loopback with wrk (Debian: apt-get install nginx-light wrk), and print a table for README.md.
# Server and client share the machine. Takes about a minute; everything is in a temp folder, which is removed.
#
#   nginx/load_test.sh [SECONDS-FOR-EACH-ROW] [CONNECTIONS]
set -eu

seconds=${1:-6}
connections=${2:-32}
here=$(cd "$(dirname "$0")" && pwd -P)
work=$(mktemp -d)
server=
finish() {
    [ -z "$server" ] || kill "$server" 2> /dev/null || true
    [ -z "$server" ] || wait "$server" || true
    server=
}
trap 'finish; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

chmod 755 "$work"
mkdir "$work/data" "$work/run" "$work/secrets"
openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1 \
    -keyout "$work/secrets/tls.key" -out "$work/secrets/tls.crt" 2> /dev/null
head -c 104857600 /dev/urandom > "$work/data/large.tar"
head -c 4096 "$work/data/large.tar" > "$work/data/small.tar"

as_user=
if [ "$(id -u)" = 0 ]; then
    chown -R 101:101 "$work"
    as_user='setpriv --reuid=101 --regid=101 --clear-groups'
fi

cat > "$work/load.lua" << 'LUA'
local what, login = os.getenv("WHAT"), os.getenv("LOGIN")
local body, count, threads = nil, 0, 0
function setup(thread)
    thread:set("id", threads)
    threads = threads + 1
end
function init(_)
    math.randomseed(id + 1)
    if login ~= "none" then wrk.headers["Authorization"] = "Basic " .. login end
    if what == "put" then body = string.rep("tarmill!", 131072) end
end
function request()
    count = count + 1
    if what == "range" then
        local start = math.random(0, 104857600 - 100000)
        return wrk.format("GET", "/large.tar", { ["Range"] = string.format("bytes=%d-%d", start, start + 99999),
            ["Authorization"] = wrk.headers["Authorization"], ["Host"] = wrk.headers["Host"] })
    elseif what == "put" then
        return wrk.format("PUT", string.format("/put/%d-%d.tar", id, count % 64), nil, body)
    end
    return wrk.format("GET", what == "large" and "/large.tar" or "/small.tar")
end
function done(summary, latency, _)
    local took, errors = summary.duration / 1e6, summary.errors
    local sent = what == "put" and summary.requests * 1048576 or summary.bytes
    io.write(string.format("| %.0f | %.0f | %.1f | %.1f | %d |\n", summary.requests / took, sent / took / 1e6,
        latency:percentile(50) / 1000, latency:percentile(99) / 1000,
        errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
LUA

serve() { # PASSWORD-LINE VARIABLE...
    printf '%s\n' "$1" > "$work/secrets/htpasswd"
    shift
    # A free port: the system's choice would be known to nginx only.
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    # shellcheck disable=SC2086
    env STORE_DATA="$work/data" STORE_RUN="$work/run" STORE_SECRETS="$work/secrets" STORE_LISTEN="127.0.0.1:$port" \
        STORE_ACCESS_LOG="$work/run/access.log" "$@" $as_user "$here/start.sh" 2> "$work/run/errors" &
    server=$!
    for _ in $(seq 100); do
        curl -fsk "$scheme://127.0.0.1:$port/healthz" > /dev/null 2>&1 && return
        kill -0 "$server" 2> /dev/null || break
        sleep 0.1
    done
    cat "$work/run/errors" >&2
    exit 1
}

row() { # TITLE WHAT LOGIN
    printf '| %s ' "$1"
    WHAT=$2 LOGIN=$3 wrk -t 2 -c "$connections" -d "$seconds" --timeout 30s -s "$work/load.lua" \
        "$scheme://127.0.0.1:$port" | grep '^|'
}

login=$(printf 'me:secret' | openssl base64)
sha="me:{SHA}$(printf secret | openssl sha1 -binary | openssl base64)"
apr1="me:$(openssl passwd -apr1 secret)"

printf '%s cores (%s), load %s before, nginx %s, %s connections, %s s for each row, data on %s\n\n' "$(nproc)" \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(cut -d ' ' -f 1 /proc/loadavg)" "$(PATH=$PATH:/usr/sbin nginx -v 2>&1 | sed 's,.*/,,')" \
    "$connections" "$seconds" "$(stat -f -c %T "$work")"
echo '| request | requests/s | MB/s | median ms | 99 % ms | errors |'
echo '| --- | ---: | ---: | ---: | ---: | ---: |'
scheme=http
serve "$sha" STORE_READ=open
row 'GET of 4 KB' small none
row 'GET of 100 KB at random in 100 MB' range none
row 'GET of 100 MB' large none
row 'PUT of 1 MB' put "$login"
finish
serve "$sha" STORE_READ=private
row "GET of 4 KB with a password, \`{SHA}\`" small "$login"
finish
serve "$apr1" STORE_READ=private
row "GET of 4 KB with a password, \`\$apr1\$\`" small "$login"
finish
scheme=https
serve "$sha" STORE_READ=open STORE_TLS=on
row 'GET of 4 KB over TLS' small none
row 'GET of 100 KB at random over TLS' range none
row 'PUT of 1 MB over TLS' put "$login"
finish
errors=$(grep -vcE '^(note|serving)' "$work/run/errors" || true)
[ "$errors" = 0 ] || { echo "nginx complained:" >&2; head -n 5 "$work/run/errors" >&2; exit 1; }
