#!/usr/bin/env bash
# A Slurm cluster of one node, on this machine, without systemd: for tests/slurm/test_slurm.py.
#
#   cluster.sh start FOLDER    start munged, slurmctld and slurmd, as root; everything they write is in FOLDER
#   cluster.sh stop FOLDER     stop them, and all jobs
#
# Needs Debian's slurm-wlm and munge (apt-get install slurm-wlm). Commands find the cluster by
# SLURM_CONF=FOLDER/slurm.conf. Two partitions of the same node: `main`, and `down`, which starts no jobs. There is no
# accounting: FOLDER/bin/sacct stands in for sacct with what slurmctld remembers of the last minutes.
set -euo pipefail
folder=$(realpath "${2:?a folder}"); host=$(hostname -s); export SLURM_CONF=$folder/slurm.conf

# await SECONDS COMMAND: until the command succeeds.
await() { for _ in $(seq "$1"); do "${@:2}" >/dev/null 2>&1 && return; sleep 1; done; echo "${*:2} failed"; return 1; }
idle() { sinfo --noheader --format=%T --partition=main | grep -q idle; }

case "${1:-}" in
start)
  mkdir -p "$folder"/{state,spool,munge}; chmod 700 "$folder/munge"
  head -c 1024 /dev/urandom > "$folder/munge/key"; chmod 400 "$folder/munge/key"
  cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
KillWait=5
ReturnToService=2
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
SchedulerParameters=sched_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc)
PartitionName=main Nodes=$host Default=YES State=UP
PartitionName=down Nodes=$host State=DOWN
CONF
  mkdir -p "$folder/bin"
  printf '%s\n' '#!/bin/sh' "echo 'JobID|State|NodeList'" \
    "squeue --noheader --array --states=all --format='%i|%T|%N'" > "$folder/bin/sacct"
  chmod +x "$folder/bin/sacct"
  munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
  slurmctld; slurmd
  await 60 idle ;;
stop)
  scancel --user="$(id -u)" 2>/dev/null || true
  for name in slurmd slurmctld munged; do kill "$(cat "$folder/$name.pid")" || true; done ;;
*) sed -n '2,10p' "$0"; exit 2 ;;
esac
