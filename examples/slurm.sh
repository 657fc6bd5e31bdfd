#!/bin/bash
# sbatch examples/slurm.sh config.yaml output_dir
# Submitted again, it continues the run. Ten minutes before the time is up SLURM sends USR1, which is passed on to all tasks as SIGTERM
# (`kill` on srun would kill them at once): the run writes a checkpoint and ends. The launcher gives it 30 seconds for that; if a
# checkpoint of yours takes longer, the last one of --save_every is what counts.
#SBATCH --job-name=mmjepa
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --output=%x-%j.out
set -euo pipefail

config=${1:?usage: sbatch slurm.sh config.yaml output_dir}
output=${2:?usage: sbatch slurm.sh config.yaml output_dir}
here=${SLURM_SUBMIT_DIR:-$PWD}
names=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${names%%$'\n'*}
export OMP_NUM_THREADS=8

more=(--output "$output" --save_every 200)
if [ -d "$output/checkpoints" ]; then more+=(--resume); fi

# SLURM_NODEID is the number of the machine that a task runs on, so it is read there.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file "$0" --num_machines "$SLURM_NNODES" \
  --num_processes "$((SLURM_NNODES * 8))" --machine_rank "$SLURM_NODEID" --main_process_ip "$1" --main_process_port 29500 \
  -m mmjepa.vl.train "${@:2}"' \
  "$here/examples/accelerate_multinode_fsdp.yaml" "$first" "$config" "${more[@]}" &
run=$!
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' USR1
while :; do # a signal ends `wait` early
  code=0; wait $run || code=$?
  kill -0 $run 2>/dev/null || exit $code
done
