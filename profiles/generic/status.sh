#!/bin/sh
# usage: status.sh JOB — running, success or failed, as Slurm sees the job; needs no accounting.
# A question that gets no answer counts as running: the controller may be away, the job goes on all the same.
# A job that Slurm has forgotten (MinJobAge) is asked for in the accounting; where there is none it counts as failed: done work
# is not done again, since a stage goes on from its state.
job=$1
state=$(timeout 60 squeue --noheader --states=all --format=%T --jobs="$job" 2>&1) || case $state in
  *"Invalid job id"*) state= ;;
  *) echo running; exit 0 ;;
esac
if [ -z "$state" ]; then
  state=$(timeout 60 sacct --noheader --allocations --parsable2 --format=State --jobs="$job" 2>/dev/null | tail -n 1)
fi
case $state in
  COMPLETED) echo success ;;
  "" | BOOT_FAIL | CANCELLED* | DEADLINE | FAILED | LAUNCH_FAILED | NODE_FAIL | OUT_OF_MEMORY | PREEMPTED | REVOKED | TIMEOUT)
    echo failed ;;
  *) echo running ;;  # PENDING, COMPLETING, REQUEUED, SUSPENDED …
esac
