# Sourced by the training scripts, in code/: DeepSpeed without an activated environment, and a word where no GPU is.
PATH="$PATH:$PWD/../.venv/bin"
if ! command -v deepspeed >/dev/null; then
    echo "error: no deepspeed, neither in an activated environment nor in .venv; run: make setup" >&2
    exit 2
fi
if ! compgen -G "/dev/nvidia[0-9]*" >/dev/null && ! [ -e /dev/kfd ] && ! [ -e /dev/dxg ]; then
    echo "no GPU here: the paper's model trains on GPUs; bash scripts/train_compact.sh trains the compact model on a CPU" >&2
fi
