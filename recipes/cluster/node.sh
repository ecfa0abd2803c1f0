#!/usr/bin/env bash
# What one machine of a run does: `node.sh trainer FIELDS...` or `node.sh server FIELDS...`. slurm.sh, skypilot.yaml and
# kubernetes.yaml start it in the repository's root; FIELDS go on to the recipe (--max_steps 100).
set -euo pipefail

fail() {
    echo "node.sh: error: $*" >&2
    exit 2
}

# From the job file
: "${RECIPE:?the recipe, such as recipes/qwen2.5-7b/gcpo.yaml}"
: "${SHARED:?a folder that every machine sees and that outlives them}"
: "${GPUS:?GPUs of each machine}"
: "${TRAINERS:=1}"    # machines that train
: "${HEAD:=localhost}" # address of the first of them
: "${SERVER:=}"       # address of the machine with the vLLM server, if there is one
# The number of this machine among those that train, from 0
: "${MACHINE_RANK:=${SLURM_PROCID:-${JOB_COMPLETION_INDEX:-0}}}"

# What may depend on the site
: "${LAUNCHER:=recipes/accelerate/zero3_multinode.yaml}" # or fsdp2.yaml beside it
: "${PORT:=29500}"         # of the first machine, for the others that train
: "${SERVER_PORT:=8000}"   # of the server
: "${PROMPT_TOKENS:=2048}" # the server's context is this and `max_completion_length`
: "${GRACE:=1800}"         # seconds that the update in progress may take after SIGTERM

# setting NAME FIELDS...: what a field of the recipe is, or what FIELDS put in its place
setting() {
    local name=$1 value
    shift
    value=$(sed -n "s/^$name: *\([^ ]*\).*/\1/p" "$RECIPE")
    while (($#)); do
        case $1 in
            "--$name") value=${2:-} ;;
            "--$name="*) value=${1#*=} ;;
            *) ;;
        esac
        shift
    done
    value=${value//[\"\']/} # as YAML may have them
    [[ -n $value ]] || fail "$RECIPE has no \`$name\`."
    printf '%s\n' "$value"
}

# reachable NAME: waits until a name has an address; machines of a cluster do not start at the same time
reachable() {
    # shellcheck disable=SC2016 # the inner shell's $1
    timeout 600 bash -c 'until getent hosts "$1" >/dev/null; do sleep 2; done' wait "$1" ||
        fail "'$1' has no address after 10 minutes."
}

role=${1:-}
shift || true
[[ -f $RECIPE ]] || fail "there is no recipe '$RECIPE' in $PWD: start in the repository's root."

case $role in
    trainer)
        command -v trl-credit >/dev/null || fail "there is no trl-credit on PATH, which is $PATH"
        [[ -f $LAUNCHER ]] || fail "there is no launcher configuration '$LAUNCHER' in $PWD."
        probe=$SHARED/.writable-$MACHINE_RANK
        if ! { mkdir -p "$SHARED" && touch "$probe" && rm -f "$probe"; }; then
            fail "'$SHARED' cannot be written to, and checkpoints are to go there."
        fi
        output=$(setting output_dir)
        reachable "$HEAD"
        options=()
        if [[ -n $SERVER ]]; then
            reachable "$SERVER"
            options+=(--vllm_server_host "$SERVER" --vllm_server_port "$SERVER_PORT")
            # The address that the server sends for weights to: vLLM's own guess needs a route to the internet
            VLLM_HOST_IP=${VLLM_HOST_IP:-$(python3 -c 'import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.connect((sys.argv[1], 9))
    print(s.getsockname()[0])' "$SERVER")}
            export VLLM_HOST_IP
        fi
        export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$GRACE
        # It takes the place of this shell, and so gets SIGTERM itself; after that it exits with 143
        exec trl-credit train --config "$RECIPE" --accelerate_config "$LAUNCHER" \
            --num_machines "$TRAINERS" --num_processes "$((TRAINERS * GPUS))" --machine_rank "$MACHINE_RANK" \
            --main_process_ip "$HEAD" --main_process_port "$PORT" \
            --output_dir "$SHARED/$output" --resume_from_checkpoint auto ${options[@]+"${options[@]}"} "$@"
        ;;
    server)
        command -v vllm >/dev/null || fail "there is no vllm on PATH, which is $PATH"
        model=$(setting model_name_or_path "$@")
        length=$(setting max_completion_length "$@")
        export VLLM_SERVER_DEV_MODE=1 # for the endpoints that take weights
        exec vllm serve "$model" --port "$SERVER_PORT" --tensor-parallel-size "$GPUS" \
            --max-model-len "$((length + PROMPT_TOKENS))" --weight-transfer-config '{"backend": "nccl"}' \
            --logprobs-mode processed_logprobs --max-logprobs -1
        ;;
    *) fail "'$role' is neither 'trainer' nor 'server'." ;;
esac
