# Sourced: train CONFIG [KEY VALUE ...] on one CPU process, one GPU, or every GPU found.
# Several machines: run `accelerate launch` yourself with --num_machines, --machine_rank, --main_process_ip (README).
. "$(dirname "$0")/../setup.sh"

train() {
    gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
    if [ "$gpus" -gt 1 ]; then
        echo "training on $gpus GPUs" >&2
        exec "$PYTHON" -m accelerate.commands.launch --multi_gpu --num_processes "$gpus" train.py --config_file "$@"
    fi
    exec "$PYTHON" train.py --config_file "$@"
}
