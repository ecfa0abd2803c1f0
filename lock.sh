#!/usr/bin/env bash
# Writes the pins (`make lock`), or resolves with them what a user may install (`make check-lock`). uv asks the package
# index alone, so wheels that happen to lie on this machine hide nothing.
set -euo pipefail
cd "$(dirname "$0")"
uv=${UV:-uv}
export MACOSX_DEPLOYMENT_TARGET=14.0  # the oldest macOS that torch has wheels for
pythons="3.11 3.12 3.13"
platforms="linux macos"
user="quickstart images deepspeed eval analysis vllm"

extras() { printf -- '--extra %s ' "$@"; }

compile() { "$uv" pip compile pyproject.toml --quiet --no-header --no-annotate "$@"; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

write() {
    local header="# Written by \`make lock\`: every package that" options="--universal --python-version ${pythons%% *}"
    cat constraints.txt constraints-dev.txt >"$scratch/all" 2>/dev/null || true  # versions that still fit stay
    # shellcheck disable=SC2086
    compile $options --all-extras "$@" --output-file "$scratch/all" >/dev/null
    cp "$scratch/all" "$scratch/user"
    # shellcheck disable=SC2046,SC2086
    compile $options $(extras $user) --output-file "$scratch/user" >/dev/null
    # One resolution in two files, by the first column, NAME==VERSION: markers differ where tests widen them
    {
        echo "$header the extras of users need, at the version that CI uses."
        awk 'NR == FNR { user[$1]; next } $1 in user' "$scratch/user" "$scratch/all"
    } >constraints.txt
    {
        echo "$header only tests and development need, beside those of constraints.txt."
        awk 'NR == FNR { user[$1]; next } !($1 in user)' "$scratch/user" "$scratch/all"
    } >constraints-dev.txt
}

# shellcheck disable=SC2046
check_one() {
    local python=$1 platform=$2 pins="-c constraints.txt"
    shift 2
    case " $* " in *" dev "* | *" docs "*) pins="$pins -c constraints-dev.txt" ;; esac
    # shellcheck disable=SC2086
    if ! compile $pins --python-version "$python" --python-platform "$platform" $(extras "$@") \
        --output-file "$scratch/resolved" >/dev/null; then
        echo "These extras do not resolve on Python $python, $platform: $*" >&2
        return 1
    fi
}

check() {
    local python platform union
    for python in $pythons; do
        for platform in $platforms; do
            for union in $user dev docs "deepspeed vllm" "$user" "$user dev docs"; do
                echo "one $python $platform $union"
            done
        done
    done >"$scratch/cases"
    xargs -P "$(getconf _NPROCESSORS_ONLN)" -L 1 "./$(basename "$0")" <"$scratch/cases"
    echo "$(wc -l <"$scratch/cases") resolutions hold."
}

case "${1:-}" in
    write) shift; write "$@" ;;
    check) check ;;
    one) shift; check_one "$@" ;;
    *) echo "usage: lock.sh write [UV OPTIONS] | check" >&2; exit 2 ;;
esac
