#!/bin/bash
# usage: down.sh FOLDER — cancels all jobs and ends what up.sh started, by its process numbers.
S=${1:?folder}; unset SLURM_CONF
J=$(timeout 10 squeue -h -o %A 2>/dev/null | sort -u)
if [ -n "$J" ]; then
  timeout 10 scancel $J
  for _ in $(seq 60); do [ -z "$(timeout 10 squeue -h -o %A 2>/dev/null)" ] && break; sleep 0.5; done
fi
for d in slurmd slurmctld munged; do
  p=$(cat "$S/run/$d.main" 2>/dev/null) || continue
  kill -TERM "$p" 2>/dev/null
  for _ in $(seq 100); do kill -0 "$p" 2>/dev/null || break; sleep 0.1; done
  kill -0 "$p" 2>/dev/null && { echo "$d ($p) does not end: SIGKILL" >&2; kill -KILL "$p"; }
  rm -f "$S/run/$d.main"
done
for f in slurm.conf gres.conf; do [ "$(readlink /etc/slurm/$f)" = "$S/etc/$f" ] && rm -f /etc/slurm/$f; done
exit 0
