#!/bin/bash
# properties = {properties}
# A job that is cancelled or at its limit is first asked to end (SIGTERM), all its processes at once. Were this shell to end at
# that, the scheduler would kill the trainer while it saves: it stays until its command has ended.
trap : TERM
{exec_job}
