#!/bin/bash
# A Ray cluster inside a Slurm job: sbatch docs/deploy/slurm.sh FILE [options of bench run]
# Submitted again, the job goes on from the checkpoints.
#SBATCH --job-name=bench
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
set -euo pipefail

export BENCH_DATA="${BENCH_DATA:-/scratch/data}"   # the same path on every node, or a copy on each
results="${BENCH_RESULTS:-$PWD/runs}"              # where checkpoints and records go
minutes="${BENCH_MINUTES:-1420}"                   # stops at a checkpoint before --time ends

# Ray's token: one for this job, handed to its steps in their environment.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$(python -c 'import secrets; print(secrets.token_hex(32))')"
export RAY_AUTH_TOKEN

first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
ip="$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$first" hostname --ip-address | awk '{print $1}')"
port="$((20000 + SLURM_JOB_ID % 10000))"           # jobs that share a node have ports of their own
node=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --block)
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT    # the nodes of Ray end with the job

srun --overlap --nodes=1 --ntasks=1 --nodelist="$first" \
    ray start --head --node-ip-address="$ip" --port="$port" --include-dashboard=false "${node[@]}" &
for _ in $(seq 60); do
    ray status --address="$ip:$port" >/dev/null 2>&1 && break
    sleep 2
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    others="$((SLURM_JOB_NUM_NODES - 1))"
    srun --overlap --nodes="$others" --ntasks="$others" --exclude="$first" \
        ray start --address="$ip:$port" "${node[@]}" &
fi

# Nodes that join later are used too.
bench run "$@" --address "$ip:$port" --results "$results" --max-minutes "$minutes"
