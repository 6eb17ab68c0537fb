#!/usr/bin/env bash
# A Slurm of this one machine, for the tests: controller, node and munge, on 127.0.0.1 only, without systemd. As root.
#   tests/slurm/slurm_up.sh up      # then: export SLURM_CONF=$SLURM_LAB/slurm.conf
#   tests/slurm/slurm_up.sh down    # ends what `up` started, and nothing else
#   tests/slurm/slurm_up.sh env     # prints the export
# Needs slurm-wlm and munge: apt-get install -y --no-install-recommends slurm-wlm munge
set -euo pipefail
lab=${SLURM_LAB:-/tmp/autointerp-slurm}
conf=$lab/slurm.conf
export SLURM_CONF=$conf

ours() { [ -s "$lab/$1.pid" ] && [ "$(cat "/proc/$(cat "$lab/$1.pid")/comm" 2>/dev/null)" = "$1" ]; }

down() {
  ! ours slurmctld || squeue --noheader --format %A 2>/dev/null | xargs --no-run-if-empty scancel --quiet || true
  for daemon in slurmd slurmctld munged; do
    if ours "$daemon"; then
      pid=$(cat "$lab/$daemon.pid")
      kill "$pid" 2>/dev/null || true
      for _ in $(seq 100); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
    fi
    rm -f "$lab/$daemon.pid"
  done
}

write_conf() {
  host=$(hostname -s) cpus=$(nproc)
  memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
  # Without NoInAddrAny the daemons would listen on every interface.
  # Jobs that queue again would wait two minutes for their old credential to expire: here a few seconds.
  cat > "$conf" <<EOF
ClusterName=autointerp
SlurmctldHost=$host(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=17817
SlurmdPort=17818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$lab/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$lab/state
SlurmdSpoolDir=$lab/spool
SlurmctldPidFile=$lab/slurmctld.pid
SlurmdPidFile=$lab/slurmd.pid
SlurmctldLogFile=$lab/slurmctld.log
SlurmdLogFile=$lab/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=500000,batch_sched_delay=1
KillWait=5
MinJobAge=300
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
NodeName=$host NodeHostname=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=lab Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
EOF
  # Debian 12's slurmd wants a valid cgroup plugin, though none is used.
  printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' > "$lab/cgroup.conf"
}

up() {
  for program in munged slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || {
      echo "no $program here: apt-get install -y --no-install-recommends slurm-wlm munge" >&2
      exit 1
    }
  done
  [ "$(id -u)" = 0 ] || { echo "Slurm's daemons have to be started as root" >&2; exit 1; }
  down
  mkdir -p "$lab"/{state,spool,munge}
  # munged refuses a folder or key that others may write. It is root's here, and so are its folder and its key.
  chmod 755 "$lab" "$lab/munge"
  [ -s "$lab/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom > "$lab/munge/key")
  /usr/sbin/munged --key-file="$lab/munge/key" --socket="$lab/munge/socket" --pid-file="$lab/munged.pid" \
    --log-file="$lab/munge/log" --seed-file="$lab/munge/seed" --num-threads=2
  # A state of earlier daemons would bring their jobs back.
  rm -rf "$lab/state" "$lab/spool"
  mkdir -p "$lab"/{state,spool}
  write_conf
  /usr/sbin/slurmctld -f "$conf"
  /usr/sbin/slurmd -f "$conf"
  for _ in $(seq 60); do
    if sinfo --noheader --format %T 2>/dev/null | grep -q idle; then
      echo "export SLURM_CONF=$conf"
      return
    fi
    sleep 0.5
  done
  echo "Slurm did not come up: see $lab/slurmctld.log and $lab/slurmd.log" >&2
  tail -n 5 "$lab/slurmctld.log" "$lab/slurmd.log" >&2 || true
  down
  exit 1
}

case ${1:-up} in
  up) up ;;
  down) down ;;
  env) echo "export SLURM_CONF=$conf" ;;
  *) echo "up, down or env" >&2; exit 2 ;;
esac
