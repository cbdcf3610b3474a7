#!/bin/sh
# usage: status.sh JOB. Prints running, success or failed, the state of the job in Slurm; needs no accounting.
# Without an answer the job counts as running: the controller may be unavailable while the job continues.
# For a job that Slurm has forgotten (MinJobAge) the accounting is queried. Without accounting the job counts as failed: no work is
# lost, because a stage resumes from its state.
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
