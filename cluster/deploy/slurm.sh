#!/usr/bin/env bash
# A run on machines that Slurm hands out; the same command resumes it, also after preemption.
#
#   ray get-auth-token --generate      # once; ~/.ray/auth_token in a home that the machines share
#   sbatch --nodes=4 cluster/deploy/slurm.sh paper output=/shared/RUN
#
# To fill in: VENV, a folder that all machines share, holding scenesweep. The output must be a
# folder that they share, or a URL. All nodes are alike, so the head's GPUs work as well. Its shell
# syntax and the arguments of Ray 2.60's symmetric-run are checked by a test; not run under Slurm.
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
