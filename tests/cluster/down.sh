#!/usr/bin/env bash
# Stop the test cluster of up.sh: its jobs, then its own daemons, found by their pid files.
set -u

folder=${SLURM_TEST_DIR:-/run/decision-basis-slurm}
export SLURM_CONF=$folder/slurm.conf
grep -qs '^ClusterName=decision-basis$' "$SLURM_CONF" || exit 0 # nothing of ours

is_running() { # PID_FILE: a stale one may hold the number of another process, or of a dead one
  { [ -s "$1" ] && grep -E '^\S+ \((slurmctld|slurmd|munged)\) [^Z]' "/proc/$(cat "$1")/stat"; } &> /dev/null
}

if is_running "$folder/slurmctld.pid"; then
  squeue -h -o %A 2> /dev/null | sort -u | xargs -r scancel
  for ((wait = 0; wait < 100; wait++)); do
    [ -n "$(squeue -h 2> /dev/null)" ] || break
    sleep 0.2
  done
fi
for file in "$folder"/slurmd.*.pid "$folder/slurmctld.pid" "$folder/munged.pid"; do
  if is_running "$file"; then
    kill "$(cat "$file")"
    for ((wait = 0; wait < 50; wait++)); do
      is_running "$file" || break
      sleep 0.2
    done
  fi
done
rm -rf "$folder"
echo "down"
