#!/bin/sh
# Sets up what is missing, then the main job on the embedded default: writes the mini benchmark, learns a Class prompt,
# reports PCK of the text prompt and of the learned one on held-out pairs, and draws them.
# Extra arguments are KEY VALUE settings for the training: sh script/demo.sh TRAIN.MAX_STEPS 20
. "$(dirname "$0")/setup.sh"

config=config/mini/sd4match_class.yaml
prompt=Class_spair_mini_TokenEmbeds75

step() { printf '\n== %s\n' "$*"; }

step "the mini benchmark (SPair-71k's layout, rendered)"
"$PYTHON" -m mini.render --root asset/mini/data --only spair
step "learn a prompt: $prompt"
"$PYTHON" train.py --config_file $config "$@"
for tested in text $prompt; do
    step "test the prompt: $tested"
    "$PYTHON" test.py --config_file $config --prompt_type $tested --quiet
done
step "untuned and learned side by side"
"$PYTHON" script/compare.py --config_file $config --prompts text $prompt
