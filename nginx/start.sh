#!/bin/sh
# Check what the store needs, write nginx's configuration, and become nginx. README.md tells the variables.
set -eu
LC_ALL=C
PATH=$PATH:/usr/sbin
export LC_ALL PATH

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

# -- the variables: each value goes into nginx's configuration, so each has a form -----------------------------------

known=' READ WRITE TLS LISTEN SECRETS DATA RUN MAX_BODY HEADER_TIMEOUT BODY_TIMEOUT CONNECTIONS CACHE_CONTROL'
known="$known SWEEP_HOURS WORKERS LOG_LEVEL ACCESS_LOG "
for name in $(env | sed -n 's/^STORE_\([A-Za-z0-9_]*\)=.*/\1/p'); do
    case $name in
        SERVICE_* | PORT | PORT_*) ;; # Kubernetes makes these for a service that is called store
        *) case $known in
            *" $name "*) ;;
            *) fail "STORE_$name is no variable of the store; they are:$(echo "$known" | sed 's/ \([A-Z]\)/ STORE_\1/g')" ;;
        esac ;;
    esac
done

must_be() { # NAME VALUE EXTENDED-REGEX WHAT-IS-EXPECTED
    if [ "$(printf '%s' "$2" | wc -l)" -ne 0 ] || ! printf '%s\n' "$2" | grep -Eqx -- "$3"; then
        fail "STORE_$1 is '$2'; expected $4"
    fi
}

READ=${STORE_READ:-private}
WRITE=${STORE_WRITE:-basic}
TLS=${STORE_TLS:-off}
LISTEN=${STORE_LISTEN:-8080}
SECRETS=${STORE_SECRETS:-/etc/store}
DATA=${STORE_DATA:-/data}
RUN=${STORE_RUN:-/tmp/store}
MAX_BODY=${STORE_MAX_BODY:-8g}
HEADER_TIMEOUT=${STORE_HEADER_TIMEOUT:-10s}
BODY_TIMEOUT=${STORE_BODY_TIMEOUT:-30s}
CONNECTIONS=${STORE_CONNECTIONS:-1024}
CACHE_CONTROL=${STORE_CACHE_CONTROL:-no-cache}
SWEEP_HOURS=${STORE_SWEEP_HOURS:-24}
WORKERS=${STORE_WORKERS:-auto}
LOG_LEVEL=${STORE_LOG_LEVEL:-crit}
ACCESS_LOG=${STORE_ACCESS_LOG:-/dev/stdout}

path='/[A-Za-z0-9._/-]*'
must_be READ "$READ" 'open|private' 'open or private'
must_be WRITE "$WRITE" 'basic|certificate' 'basic or certificate'
must_be TLS "$TLS" 'on|off' 'on or off'
must_be LISTEN "$LISTEN" '(([0-9.]+|\[[0-9a-fA-F:]+\]):)?[0-9]{1,5}' 'a port, 8080, or an address with one, 127.0.0.1:8080'
must_be SECRETS "$SECRETS" "$path" 'a full path of letters, digits and ._-/'
must_be DATA "$DATA" "$path" 'a full path of letters, digits and ._-/'
must_be RUN "$RUN" "$path" 'a full path of letters, digits and ._-/'
must_be MAX_BODY "$MAX_BODY" '[1-9][0-9]*[kmg]?' 'the size of the largest shard, such as 8g'
must_be HEADER_TIMEOUT "$HEADER_TIMEOUT" '[1-9][0-9]*(ms|s|m)' 'a time, such as 10s'
must_be BODY_TIMEOUT "$BODY_TIMEOUT" '[1-9][0-9]*(ms|s|m)' 'a time, such as 30s'
must_be CONNECTIONS "$CONNECTIONS" '[1-9][0-9]{0,4}' 'how many requests one address may have in flight, such as 1024'
must_be CACHE_CONTROL "$CACHE_CONTROL" '[a-z][a-z0-9=, -]*' "the value of a header, such as 'public, max-age=86400'"
must_be SWEEP_HOURS "$SWEEP_HOURS" '[1-9][0-9]{0,4}' 'a number of hours, such as 24'
must_be WORKERS "$WORKERS" 'auto|[1-9][0-9]?' 'auto or a number of processes'
must_be LOG_LEVEL "$LOG_LEVEL" 'debug|info|notice|warn|error|crit|alert|emerg' "one of nginx's levels, such as crit"
must_be ACCESS_LOG "$ACCESS_LOG" "off|$path" 'off, or a full path of letters, digits and ._-/'

# -- who we are, and where we may write ------------------------------------------------------------------------------

me=$(id -u)
[ "$me" -ne 0 ] || fail 'running as root; the store needs no rights: run it as another user (--user 101)'
command -v nginx > /dev/null || fail 'nginx is not installed'
{ mkdir -p "$RUN" && [ -w "$RUN" ]; } 2> /dev/null ||
    fail "user $me cannot write to $RUN; where the root file system is read-only, mount a small tmpfs on /tmp (docker: --tmpfs /tmp)"
[ -d "$DATA" ] || fail "the data folder $DATA is not there; mount a volume on it"
DATA=$(cd "$DATA" && pwd -P) || fail "user $me cannot enter $DATA"
[ "$DATA" != / ] || fail 'STORE_DATA is the whole file system; expected a volume of its own'
for folder in "$SECRETS" "$RUN"; do
    case $(cd "$folder" 2> /dev/null && pwd -P)/ in
        "$DATA"/*) fail "$folder is inside of $DATA, which is served; move it elsewhere" ;;
    esac
done

# -- the data: nginx follows symbolic links when it writes, and cannot rename across mounts --------------------------

links=$RUN/links
find "$DATA/" -path "$DATA/lost+found" -prune -o -type l -print > "$links" 2> "$links.errors" ||
    fail "user $me cannot look through $DATA for symbolic links, so that it is not served: $(head -n 1 "$links.errors"); change the owner (chown -R $me) or, in Kubernetes, set fsGroup"
if [ -s "$links" ]; then
    fail "$DATA holds symbolic links ($(wc -l < "$links" | tr -d ' ')), through which clients could read and write other files, so that it is not served: $(head -n 5 "$links" | tr '\n' ' ')
replace each by what it points to, or remove it; to see all: find $DATA -type l"
fi
mounts=$(awk -v below="$DATA/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo)
[ -z "$mounts" ] ||
    fail "something is mounted inside of $DATA, where a PUT would not be atomic: $(echo "$mounts" | tr '\n' ' '); mount one volume on $DATA alone"

upload=$DATA/.upload
{ mkdir -p "$upload" && (: > "$upload/probe.$$") && rm "$upload/probe.$$"; } 2> /dev/null ||
    fail "user $me cannot write to $upload; change the volume's owner (chown -R $me $DATA) or, in Kubernetes, set fsGroup"
swept=$(find "$upload" -type f -mmin "+$((SWEEP_HOURS * 60))" -print -exec rm -f {} + | wc -l | tr -d ' ')

# -- the secrets -----------------------------------------------------------------------------------------------------

must_be_readable() { # FILE WHAT CURE
    [ -e "$SECRETS/$1" ] || fail "$SECRETS/$1 is not there: $2; $3"
    { [ -f "$SECRETS/$1" ] && [ -r "$SECRETS/$1" ]; } || fail "$SECRETS/$1 cannot be read by user $me: $2; change its owner or mode"
}

must_be_users() { # FILE WHAT
    must_be_readable "$1" "$2" "make it: printf 'me:%s\\n' \"\$(openssl passwd -apr1)\" > $1"
    bad=$(awk '/^[ \t]*(#|$)/ { next } !/^[^:]+:[^ \t]+/ { print FNR; exit } { users++ } END { if (!users) print "none" }' \
        "$SECRETS/$1" | head -n 1)
    case $bad in
        '') ;;
        none) fail "$SECRETS/$1 names no user: $2; expected lines of user:hash" ;;
        *) fail "$SECRETS/$1, line $bad is not user:hash" ;;
    esac
}

if [ "$TLS" = on ]; then
    must_be_readable tls.crt "the server's certificate, followed by those between it and its authority" 'STORE_TLS=off does without'
    must_be_readable tls.key "the server's private key" 'STORE_TLS=off does without'
fi
READERS=htpasswd
CRL=
if [ "$WRITE" = certificate ]; then
    [ "$TLS" = on ] || fail 'STORE_WRITE=certificate needs STORE_TLS=on: client certificates are part of TLS'
    must_be_readable ca.crt "the authority of the clients' certificates" 'STORE_WRITE=basic does without'
    if [ -e "$SECRETS/ca.crl" ]; then
        must_be_readable ca.crl 'certificates that were revoked' ''
        CRL="ssl_crl $SECRETS/ca.crl;"
    fi
else
    must_be_users htpasswd 'who may write'
    if [ "$READ" = private ] && [ -e "$SECRETS/htpasswd-read" ]; then
        must_be_users htpasswd-read 'who may read'
        READERS=htpasswd-read
    fi
fi

# -- the configuration -----------------------------------------------------------------------------------------------

here=$(cd "$(dirname "$0")" && pwd -P)
[ "$ACCESS_LOG" = off ] || ACCESS_LOG="$ACCESS_LOG store" # the name of the format
for file in "$here"/conf/*.conf; do
    sed -e "s|@READ@|$READ|g" -e "s|@WRITE@|$WRITE|g" -e "s|@TLS@|$TLS|g" \
        -e "s|@SECRETS@|$SECRETS|g" -e "s|@DATA@|$DATA|g" -e "s|@RUN@|$RUN|g" \
        -e "s|@MAX_BODY@|$MAX_BODY|g" -e "s|@HEADER_TIMEOUT@|$HEADER_TIMEOUT|g" -e "s|@BODY_TIMEOUT@|$BODY_TIMEOUT|g" \
        -e "s|@CONNECTIONS@|$CONNECTIONS|g" -e "s|@CACHE_CONTROL@|$CACHE_CONTROL|g" -e "s|@WORKERS@|$WORKERS|g" \
        -e "s|@LOG_LEVEL@|$LOG_LEVEL|g" -e "s|@ACCESS_LOG@|$ACCESS_LOG|g" -e "s|@READERS@|$READERS|g" \
        -e "s|@CRL@|$CRL|g" \
        "$file" > "$RUN/${file##*/}"
done
ssl=
[ "$TLS" = off ] || ssl=' ssl'
echo "listen $LISTEN$ssl;" > "$RUN/listen.conf"
case $LISTEN in
    *:*) ;;
    *) [ ! -s /proc/net/if_inet6 ] || echo "listen [::]:$LISTEN$ssl;" >> "$RUN/listen.conf" ;;
esac

[ "$swept" = 0 ] || echo "removed $swept uploads that ended more than $SWEEP_HOURS hours ago" >&2
[ "$WRITE$TLS" != basicoff ] || echo 'note: without TLS here, passwords need it in front of here' >&2
echo "serving $DATA on $LISTEN: reading $READ, writing by $WRITE, TLS $TLS" >&2
exec nginx -e stderr -p "$RUN/" -c "$RUN/nginx.conf"
