#!/usr/bin/env bash
# A pod on one machine: N processes of `jaxgrpo train`, each with virtual devices of its own, which find each other as the hosts
# of a real pod do. Ctrl-C and SIGTERM let them save first. A job that was preempted or lost a process is started again and
# goes on from its last checkpoint; one that failed for a reason is not.
#
#   launch/local_pod.sh [--dry-run] N CONFIG [key=value ...]
#
#   DEVICES   virtual devices of each process (default 2)
#   RESTARTS  how often a lost job is started again (default 3)
#   LOGS      folder of the processes' output (default runs/local_pod); that of process 0 is shown too
#   JAXGRPO   the command (default: jaxgrpo of .venv where there is one)
set -uo pipefail

DEVICES=${DEVICES:-2}
RESTARTS=${RESTARTS:-3}
LOGS=${LOGS:-runs/local_pod}
GRACE=60 # seconds that the other processes get to end by themselves after one is lost

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse_flags "$@"
[ ${#arguments[@]} -ge 2 ] || usage "N, the number of processes, and CONFIG are needed"
processes=${arguments[0]} config=${arguments[1]} overrides=("${arguments[@]:2}")
[[ $processes =~ ^[1-9][0-9]*$ ]] || { echo "local_pod: N=$processes is not a number of processes" >&2; exit 2; }
JAXGRPO=${JAXGRPO:-$(jaxgrpo_command)}

free_port() {
  local port
  for _ in {1..100}; do
    port=$((20000 + RANDOM % 12000))
    (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null || { echo "$port"; return; }
  done
  echo "local_pod: no free port was found between 20000 and 32000" >&2
  exit 1
}

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$DEVICES"

command_of() { # the command of process $1, as words in the array `command`
  command=("$JAXGRPO" train "$config" "${overrides[@]}" "hosts.count=$processes" "hosts.index=$1" "hosts.coordinator=127.0.0.1:$port")
}

if [ -n "$DRY_RUN" ]; then
  port=PORT
  for ((i = 0; i < processes; i++)); do
    command_of "$i"
    run env JAX_PLATFORMS=cpu "XLA_FLAGS=$XLA_FLAGS" "${command[@]}"
  done
  exit 0
fi

mkdir -p "$LOGS" || exit 1
pids=()
stopping=

forward() { # a person or the machine wants the job to end: every process saves at the end of its step
  stopping=1
  echo "local_pod: asked to stop; the processes save and end" >&2
  kill -TERM "${pids[@]}" 2> /dev/null
}
trap forward TERM INT

describe() { # exit code $1 in words
  if [ "$1" -gt 128 ]; then echo "killed by SIG$(kill -l $(($1 - 128)))"; else echo "exit code $1"; fi
}

# What the log $1 ends with: our own last line where there is one among its last 100, else the last that is not a frame of a C++ stack.
last_line() {
  local line
  line=$(tail -n 100 "$1" | grep '^jaxgrpo: ' | tail -n 1)
  [ -n "$line" ] || line=$(grep -vE '^\[Gloo\]|^[[:space:]]*$|^[[:space:]]*(@|#[0-9]+) |^\*\*\*' "$1" | tail -n 1)
  echo "${line:-(no output)}"
}

# Starts all processes and waits for them. Sets `code` to 0, or to the exit code of the process that ended first and badly.
run_once() {
  local i pid status first='' deadline
  port=$(free_port) || exit 1
  pids=()
  touch "$LOGS/host-0.log" # tail may come before process 0
  for ((i = 0; i < processes; i++)); do
    command_of "$i"
    "${command[@]}" > "$LOGS/host-$i.log" 2>&1 < /dev/null &
    pids+=($!)
  done
  tail -n +1 -f --pid="${pids[0]}" "$LOGS/host-0.log" 2> /dev/null | grep --line-buffered -vE '^\[Gloo\]|connected to [0-9]+ peer ranks' &
  code=0 deadline=
  local alive=("${pids[@]}")
  while [ ${#alive[@]} -gt 0 ]; do
    sleep 0.2
    local still=()
    for i in "${!pids[@]}"; do
      pid=${pids[$i]}
      [[ " ${alive[*]} " == *" $pid "* ]] || continue
      if kill -0 "$pid" 2> /dev/null; then
        still+=("$pid")
        continue
      fi
      wait "$pid"
      status=$?
      if [ $status -ne 0 ] && [ -z "$first" ]; then
        first=$i code=$status deadline=$((SECONDS + GRACE))
        if [ $status -ne 75 ]; then
          echo "local_pod: process $i of $processes is lost ($(describe $status)); its last line: $(last_line "$LOGS/host-$i.log")" >&2
        fi
      fi
    done
    alive=("${still[@]}")
    if [ -n "$deadline" ] && [ $SECONDS -gt $deadline ] && [ ${#alive[@]} -gt 0 ]; then
      echo "local_pod: ${#alive[@]} processes did not end within $GRACE s and are killed" >&2
      kill -KILL "${alive[@]}" 2> /dev/null
      deadline=
    fi
  done
  if [ -n "$first" ]; then
    echo "local_pod: all processes have ended; their output is in $LOGS; the last of process 0: $(last_line "$LOGS/host-0.log")" >&2
  fi
}

for ((attempt = 0; ; attempt++)); do
  run_once
  if [ "$code" -eq 0 ] || [ -n "$stopping" ] || ! worth_another_start "$code"; then exit "$code"; fi
  if [ "$attempt" -ge "$RESTARTS" ]; then
    echo "local_pod: started $((attempt + 1)) times; giving up" >&2
    exit "$code"
  fi
  echo "local_pod: starting again ($((attempt + 1)) of $RESTARTS); the job goes on from its last checkpoint" >&2
done
