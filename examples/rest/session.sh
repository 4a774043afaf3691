#!/usr/bin/env bash
# A session with Muster by curl alone: create, list, update (a stale version is
# refused), a bad spec, watch, scale, logs, remove. It checks each answer, and
# ends with 1 where one is not as it should be.
#
# It wants a cluster with the process executor: muster dev --workers 1
set -euo pipefail

rest=${MUSTER_REST:-http://127.0.0.1:7780}
name=${1:-session}
body=$(mktemp) events=$(mktemp)
trap 'rm -f "$body" "$events"; kill "${watch:-}" 2>/dev/null || true' EXIT

# call METHOD PATH STATUS [JSON] sends a request and checks the answer's status.
call() {
	local method=$1 path=$2 want=$3 got
	echo "== $method $path"
	got=$(curl -sS -X "$method" -H 'Content-Type: application/json' ${4:+-d "$4"} -o "$body" -w '%{http_code}' "$rest$path")
	cat "$body"
	echo
	[ "$got" = "$want" ] || { echo "HTTP $got, want $want" >&2; exit 1; }
}

# holds TEXT checks that the last answer holds a text.
holds() { grep -qF -- "$1" "$body" || { echo "the answer lacks $1" >&2; exit 1; }; }

# version reads a service's version: an update presents it.
version() { curl -fsS "$rest/v1/services/$name" | sed -E 's/.*"meta": *\{ *"version": *"([0-9]+)".*/\1/'; }

# await PATTERN COMMAND... repeats a command until what it prints matches.
await() {
	local pattern=$1
	shift
	for _ in $(seq 1200); do
		"$@" 2>/dev/null | grep -qE -- "$pattern" && return
		sleep 0.1
	done
	echo "gave up waiting for $pattern" >&2
	exit 1
}

spec() { # replicas, what the tasks say
	printf '{"name": "%s", "replicated": {"replicas": %s}, "task": {"generic": {"kind": "process", "payload":
		{"shell": "while :; do echo %s; sleep 1; done", "stopGracePeriod": "1s"}}}}' "$name" "$1" "$2"
}

# Changes from now on, as server-sent events.
curl -sSN -H 'Accept: text/event-stream' "$rest/v1/watch?kinds=SERVICE&names=$name" >"$events" &
watch=$!
await . cat "$events"

call POST /v1/services 200 "$(spec 2 hello)"
call POST /v1/services 409 "$(spec 2 hello)" # the name is taken
call GET "/v1/services?names=$name" 200
holds "\"$name\""
await '"runningTasks": *"2"' curl -fsS "$rest/v1/services/$name"
call GET "/v1/tasks?services=$name" 200
holds '"RUNNING"'

# A spec with three mistakes: the answer names each.
call POST /v1/services 400 '{"name": "not a name!", "task": {"generic": {"kind": "process", "payload": {"shell": 7}}, "placement": {"constraints": ["disk"]}}}'
holds 'spec.name'
holds 'spec.task.generic.payload.shell'
holds 'spec.task.placement.constraints[0]'
call POST /v1/services 400 '{"name": "x", "replicass": 3}'
holds 'replicass'

old=$(version)
call PUT "/v1/services/$name?version=$old" 200 "$(spec 2 goodbye)"
call PUT "/v1/services/$name?version=$old" 409 "$(spec 2 again)" # another change was faster
call POST "/v1/services/$name:scale" 200 '{"replicas": "3"}'
await '"runningTasks": *"3"' curl -fsS "$rest/v1/services/$name"

echo "== GET /v1/services/$name/logs"
await goodbye curl -fsS -H 'Accept: text/plain' "$rest/v1/services/$name/logs?options.tail=1"
curl -fsS -H 'Accept: text/plain' "$rest/v1/services/$name/logs?options.tail=1"

call DELETE "/v1/services/$name" 200
call GET "/v1/services/$name" 404
await '"DELETE"' cat "$events"
echo "== all as it should be; the watch saw $(grep -c '^data:' "$events") messages"
