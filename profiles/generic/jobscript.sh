#!/bin/bash
# properties = {properties}
# A cancelled job, or one at its time limit, first gets SIGTERM, in all its processes at once. If this shell ended then, the scheduler
# would kill the trainer while it saves. So the shell waits until its command has ended.
trap : TERM
{exec_job}
