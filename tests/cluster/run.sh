#!/usr/bin/env bash
# Preemption and sweeps on a real SLURM, brought up for it on this machine and stopped afterwards:
#
#   tests/cluster/run.sh                 six interruptions; PYTHON=python for your own interpreter
#   tests/cluster/run.sh --nodes 2       the two ranks on two virtual nodes
#   tests/cluster/run.sh --short         one interruption, for continuous integration
#   tests/cluster/run.sh --sweep         make sweep as an array of jobs, and W&B's agent in a job
#
# It needs root and SLURM's packages of Debian, which it installs (tests/cluster/up.sh). Without them
# it says so and ends with status 0: nothing was tested, and nothing failed. Status 1: something did.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-.venv/bin/python}
nodes=1
for ((i = 1; i < $#; i++)); do
  if [ "${!i}" = --nodes ]; then
    next=$((i + 1)) nodes=${!next}
  fi
done

trap 'tests/cluster/down.sh > /dev/null' EXIT
status=0
up=$(tests/cluster/up.sh "$nodes" 2>&1) || status=$?
if [ $status = 2 ]; then
  echo "SKIPPED: ${up#error: }"
  exit 0
fi
echo "$up"
[ $status = 0 ] || exit 1
export SLURM_CONF=${SLURM_TEST_DIR:-/run/decision-basis-slurm}/slurm.conf
if ! "$python" -m tests.cluster "$@"; then
  tail -n 40 "$(dirname "$SLURM_CONF")"/log/*
  exit 1
fi
