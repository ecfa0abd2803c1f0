#!/usr/bin/env bash
# Trains a recipe on a SLURM cluster. Submit it in the repository's root, on a file system that every node sees:
#   sbatch --nodes=1 recipes/cluster/slurm.sh recipes/qwen2.5-7b/gcpo.yaml
#   sbatch --nodes=5 recipes/cluster/slurm.sh recipes/qwen2.5-32b/gcpo.yaml  # four that train, one with vLLM
# Fields of the recipe may follow: --max_steps 100. README.md beside this file says what happens when.

# What depends on the site. Without a change here: SHARED=/scratch/me sbatch --partition=a100 --nodes=1 ...
#SBATCH --job-name=trl-credit
#SBATCH --partition=gpu
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log

# What the script counts on: whole nodes; the same log and the same job after a preemption; a signal to this script, and
# to it alone, before the time is up. 1800 seconds are for the update in progress and a checkpoint, as GRACE is below.
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@1800
set -euo pipefail

: "${ENVIRONMENT:=$PWD/.venv}"         # the virtual environment: pip install '.[deepspeed,vllm]' -c constraints.txt
: "${SHARED:=$PWD}"                    # where output_dir goes
: "${GPUS:=${SLURM_GPUS_ON_NODE:-8}}"  # of each node
: "${GRACE:=1800}"                     # seconds that the update in progress may take after SIGTERM
: "${LAST:=900}"                       # seconds for the other nodes once one has ended, to save a model or after a crash
: "${SRUN_OPTIONS:=}"                  # such as --container-image=... --container-mounts=...

fail() {
    echo "slurm.sh: error: $*" >&2
    exit 1
}

: "${SLURM_JOB_ID:?submit this script with sbatch}" "${SLURM_JOB_NODELIST:?}"
RECIPE=${1:?the recipe, such as recipes/qwen2.5-7b/gcpo.yaml}
shift
node=recipes/cluster/node.sh
[[ -f $node ]] || fail "there is no $node in $PWD: submit in the repository's root."
[[ -f $RECIPE ]] || fail "there is no recipe '$RECIPE' in $PWD."
grep -q '^vllm_mode: server' "$RECIPE" && serves=1 || serves=0
case " $* " in
    *' --vllm_mode server '* | *' --vllm_mode=server '*) serves=1 ;;
    *' --vllm_mode'*) serves=0 ;;
    *) ;;
esac

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
TRAINERS=$((${#nodes[@]} - serves))
((TRAINERS > 0)) || fail "$RECIPE needs a node for the vLLM server beside those that train: --nodes=5 for 32B."
HEAD=${nodes[0]}
SERVER=
((serves)) && SERVER=${nodes[-1]}
PATH=$ENVIRONMENT/bin:$PATH
export RECIPE SHARED GPUS GRACE TRAINERS HEAD SERVER PATH

# step NAME NODE...: becomes a job step with a task on each of the nodes
step() {
    local name=$1 list
    shift
    list=$(
        IFS=,
        echo "$*"
    )
    # shellcheck disable=SC2086 # SRUN_OPTIONS are words
    exec srun --job-name="$name" --nodes="$#" --ntasks="$#" --ntasks-per-node=1 --nodelist="$list" \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait="$LAST" $SRUN_OPTIONS "${command[@]}"
}

server=
if ((serves)); then
    # A preemption sends SIGTERM to every step. The shell ignores it, so vLLM lives until the trainers are done.
    command=(bash -c 'trap "" TERM; bash "$@"; exit $?' server "$node" server "$@")
    step server "$SERVER" &
    server=$!
fi
command=(bash "$node" trainer "$@")
step trainer "${nodes[@]:0:TRAINERS}" &
trainer=$!

# The time is nearly up, or a preemption with `send_user_signal`: ask the trainers to save, and nobody else
save() {
    local id
    echo "slurm.sh: SIGTERM to the trainers: they finish the update, save and end."
    id=$(squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format='%i %j' | awk '$2 == "trainer" {print $1}')
    scancel --signal=TERM "$id" || true
}
cancelled=0
trap save USR1
trap 'cancelled=1' TERM # scancel, or time is up: SLURM ends all steps by itself
# shellcheck disable=SC2046 # one word for each process
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

while kill -0 "$trainer" 2>/dev/null; do
    if [[ -n $server ]] && ! kill -0 "$server" 2>/dev/null; then
        wait "$server" && code=0 || code=$?
        fail "the vLLM server on $SERVER ended with $code before training did; its last lines are above."
    fi
    sleep "${POLL:-5}" &
    wait "$!" || true # a signal ends the wait
done
wait "$trainer" && code=0 || code=$?

if ((code == 143 && !cancelled)); then
    echo "slurm.sh: stopped by SIGTERM; back into the queue, from the last checkpoint."
    scontrol requeue "$SLURM_JOB_ID"
elif ((code)); then
    fail "training ended with $code; submit again to go on from the last checkpoint."
else
    echo "slurm.sh: done; the model is in $SHARED."
fi
