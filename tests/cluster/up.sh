#!/usr/bin/env bash
# A real SLURM on this machine alone, for tests: up.sh [NODES]. Stop it with down.sh.
#
# It needs root and Debian's packages, which it installs. All its state lies in one folder, it has
# ports, a munge key and a configuration of its own, and every client must be told of them:
#
#   export SLURM_CONF=/run/decision-basis-slurm/slurm.conf
#
# NODES (1) virtual nodes of 2 CPUs each, n1, n2 ..., share the machine. Exit status: 0 it is up, 2 it
# cannot be here (no root, no packages), 1 it should but does not start.
set -euo pipefail

folder=${SLURM_TEST_DIR:-/run/decision-basis-slurm}
nodes=${1:-1}
packages=(slurmctld slurmd slurm-client munge)

fail() { echo "error: $*" >&2; exit 1; }
cannot() { echo "error: $*" >&2; exit 2; }

[ "$(id -u)" = 0 ] || cannot "a test cluster needs root"
if ! command -v slurmctld slurmd sbatch munged > /dev/null; then
  command -v apt-get > /dev/null || cannot "${packages[*]} are not installed, and there is no apt-get"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q > /dev/null 2>&1 || true
  apt-get install -y -q --no-install-recommends "${packages[@]}" > /dev/null 2>&1 \
    || cannot "apt-get cannot install ${packages[*]}"
fi

host=$(hostname -s)
address=$(getent ahostsv4 "$host" | awk '{print $1; exit}')
[ -n "$address" ] || fail "the machine's own name, $host, has no address: add it to /etc/hosts"

"$(dirname "$0")/down.sh" > /dev/null
mkdir -p "$folder"/{state,log,munge}
chmod 755 "$folder"
chmod 700 "$folder/munge"
export SLURM_CONF=$folder/slurm.conf

# What is short here takes minutes on a real cluster: a requeued job waits cred_expire seconds, and
# what ignores SIGTERM is killed after KillWait. Times are the least that SLURM accepts.
cat > "$SLURM_CONF" << CONF
ClusterName=decision-basis
SlurmctldHost=$host($address)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
KillWait=5
MinJobAge=3600
ReturnToService=2
$(for ((i = 1; i <= nodes; i++)); do
    echo "NodeName=n$i NodeHostname=$host NodeAddr=$address Port=$((16817 + i)) CPUs=2"
  done)
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF

(umask 077 && head -c 128 /dev/urandom > "$folder/munge/key")
chmod 711 "$folder/munge" # clients need the socket in it, and no more
munged --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
  --pid-file="$folder/munged.pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" \
  || fail "munged does not start, see $folder/munge/log"
slurmctld -c || fail "slurmctld does not start, see $folder/log"
for ((i = 1; i <= nodes; i++)); do
  slurmd -N "n$i" || fail "slurmd n$i does not start, see $folder/log"
done
for ((wait = 0; wait < 150; wait++)); do
  idle=$(sinfo -h -N -o %T 2> /dev/null | grep -c '^idle$' || true)
  if [ "$idle" = "$nodes" ]; then
    echo "up: $(slurmctld -V), $nodes node$([ "$nodes" = 1 ] || echo s); export SLURM_CONF=$SLURM_CONF"
    exit 0
  fi
  sleep 0.2
done
sinfo -N >&2 || true
fail "the nodes did not come up within 30 s, see $folder/log"
