#!/bin/bash
# usage: up.sh FOLDER — a real Slurm of one node on loopback, everything in FOLDER, no systemd, no cgroups, no accounting.
# The node claims 8 CPUs, 64 GB and two NPUs, whatever the machine has: the workflow's own requests are tested, not the machine.
set -euo pipefail
S=${1:?folder}; mkdir -p "$S"/{etc,state,spool,log,run,munge,dev}; S=$(cd "$S" && pwd)
H=$(hostname -s)
chmod 0700 "$S/munge"
(umask 077; head -c 1024 /dev/urandom > "$S/munge/munge.key")
touch "$S/dev/npu0" "$S/dev/npu1"

cat > "$S/etc/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$H(127.0.0.1)
SlurmctldPort=${SLURMCTLD_PORT:-16817}
SlurmdPort=${SLURMD_PORT:-16818}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$S/run/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation=$S/state
SlurmdSpoolDir=$S/spool
SlurmctldPidFile=$S/run/slurmctld.pid
SlurmdPidFile=$S/run/slurmd.pid
SlurmctldLogFile=$S/log/slurmctld.log
SlurmdLogFile=$S/log/slurmd.log
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog=$S/etc/taskprolog.sh
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=5,builtin_interval=5
ReturnToService=2
MinJobAge=3600
KillWait=60
InactiveLimit=0
Waittime=0
SlurmctldTimeout=30
SlurmdTimeout=15
MessageTimeout=10
BatchStartTimeout=10
PropagateResourceLimits=NONE
DefMemPerCPU=100
GresTypes=npu
EnforcePartLimits=ALL
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MailProg=/bin/true
NodeName=$H NodeAddr=127.0.0.1 CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=65536 Gres=npu:2 State=UNKNOWN
PartitionName=npu Nodes=$H Default=YES MaxTime=1440 DefaultTime=5 State=UP
CONF
cat > "$S/etc/gres.conf" <<CONF
NodeName=$H Name=npu File=$S/dev/npu[0-1]
CONF
# As on a site with NPUs: the numbers of the allocated devices are passed in the variable that CANN reads. A file `delay` delays the
# work of the next job by the number of seconds in it.
cat > "$S/etc/taskprolog.sh" <<CONF
#!/bin/sh
i=\$(scontrol -o -d show job "\$SLURM_JOB_ID" 2>/dev/null | sed -n 's/.*GRES=npu[^ ]*(IDX:\([0-9,-]*\)).*/\1/p')
[ -n "\$i" ] && echo "export ASCEND_RT_VISIBLE_DEVICES=\$i"
mv "$S/delay" "$S/delay.\$SLURM_JOB_ID" 2>/dev/null && sleep "\$(cat "$S/delay.\$SLURM_JOB_ID")"
exit 0
CONF
chmod 0755 "$S/etc/taskprolog.sh"

# At the default place, not only in SLURM_CONF: Snakemake's job step drops every SLURM_* variable before its srun.
mkdir -p /etc/slurm
ln -sfn "$S/etc/slurm.conf" /etc/slurm/slurm.conf; ln -sfn "$S/etc/gres.conf" /etc/slurm/gres.conf
unset SLURM_CONF

start() { # NAME COMMAND…
  local name=$1; shift
  setsid "$@" >"$S/log/$name.out" 2>&1 </dev/null &
  echo $! > "$S/run/$name.main"
}
start munged munged --foreground --key-file="$S/munge/munge.key" --socket="$S/run/munge.sock" \
  --pid-file="$S/run/munged.pid" --log-file="$S/log/munged.log" --seed-file="$S/munge/munge.seed"
for _ in $(seq 100); do munge -s x --socket="$S/run/munge.sock" >/dev/null 2>&1 && break; sleep 0.1; done
munge -s x --socket="$S/run/munge.sock" | unmunge --socket="$S/run/munge.sock" >/dev/null
start slurmctld slurmctld -D -c
start slurmd slurmd -D
for _ in $(seq 150); do
  [ "$(timeout 10 sinfo -h -o %T 2>/dev/null)" = idle ] && exit 0
  sleep 0.2
done
echo "Slurm does not get ready" >&2; timeout 10 sinfo >&2 || true; tail -20 "$S"/log/* >&2; exit 1
