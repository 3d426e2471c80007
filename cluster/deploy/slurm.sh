#!/usr/bin/env bash
# A run on machines allocated by Slurm; the same command resumes it, also after preemption.
#
#   ray get-auth-token --generate      # once; writes ~/.ray/auth_token in the shared home
#   sbatch --nodes=4 cluster/deploy/slurm.sh paper output=/shared/RUN
#
# Fill in: VENV, a virtual environment with scenesweep in a folder that all machines share. The output
# must be a shared folder or a URL. All nodes are alike, so the head's GPUs are used as well. A test
# checks the shell syntax and the arguments of Ray 2.60's symmetric-run; not run under Slurm.
#SBATCH --job-name=scenesweep
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail
export PATH="VENV/bin:$PATH"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=0 ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --include-dashboard=false -- \
  python -m sweeps run "$@" ray.address=auto
