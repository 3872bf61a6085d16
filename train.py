"""Learn a prompt for the frozen Stable Diffusion UNet (SD4Match).

    python train.py --config_file config/mini/sd4match_cpm.yaml [KEY VALUE ...]
    accelerate launch --multi_gpu --num_processes 3 train.py --config_file config/spair/sd4match_cpm.yaml

The same command goes on where a stopped run left off. config/default.py explains every KEY.
"""

import argparse
import os
import sys
import time

from config import dump_config, load_config
from engine.check import check_config
from engine.entry import entry_point


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config_file", default="config/spair/sd4match_cpm.yaml", help="YAML file; default: %(default)s"
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew, forgetting an earlier run of this prompt")
    parser.add_argument("--dry_run", action="store_true", help="check and print the merged config, then stop")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings, such as TRAIN.LR 0.02")
    return parser.parse_intermixed_args()


def train(cfg, overwrite: bool) -> int:
    """Run the training that a checked config describes; the exit status of the process."""
    from engine.build import (
        build_accelerator,
        build_loss,
        build_new_prompt,
        build_pairs,
        build_trainee,
        build_validator,
    )
    from engine.precompute import build_caches
    from engine.process import StopRequest
    from engine.run import TrainingRun

    accelerator = build_accelerator(cfg, cfg.TRAIN.ACCUMULATION)
    run = TrainingRun(cfg, accelerator, overwrite)
    trn, val = build_pairs(cfg, cfg.TRAIN.SPLIT), build_pairs(cfg, cfg.VAL.SPLIT)
    run.plan(len(trn))
    prompt = build_new_prompt(cfg, trn.benchmark.categories)
    build_caches(cfg, (trn, val), prompt.condition, accelerator)
    matcher = build_trainee(cfg, prompt, accelerator.device)
    validator = build_validator(cfg, matcher)
    learner = run.start(trn, prompt)
    loss_fn = build_loss(cfg)

    with StopRequest().listening() as stop:
        while not learner.done:
            if not learner.finished and train_epoch(run, matcher, loss_fn, stop):
                run.save()
                return 128 + (stop.signal or 15)
            run.save()
            with stop.everything_saved():
                run.validate(validator, val)
            run.end_epoch()
            run.save()
    run.finish()
    return 0


def train_epoch(run, matcher, loss_fn, stop) -> bool:
    """The rest of the epoch, or of the run's steps; whether a signal asked to stop before."""
    accelerator, learner = run.accelerator, run.learner
    for batch in run.batches_of_epoch():
        with accelerator.accumulate(learner.prompt):
            tokens = learner.prompt(batch)  # the wrapped module: gradients are averaged over processes
            src_feat, trg_feat = matcher.extract_pair(batch, run.noise_seeds(batch["index"]), tokens)
            points = batch["src_kps"], batch["trg_kps"], batch["kps_mask"]
            losses = loss_fn(src_feat, trg_feat, *points, run.image_size)
            step_loss = learner.learn(losses.sum() * run.batches.weight)
        if step_loss is None:
            continue
        run.log_step(step_loss, time.monotonic())
        if learner.finished:
            break
        if stop.agreed(accelerator):
            return True
        if learner.step % run.cfg.TRAIN.SAVE_EVERY == 0:
            run.save()
    return False


@entry_point("the caches and checkpoints written so far are kept")
def main() -> int:
    args = parse_args()
    cfg = load_config(args.config_file, args.opts)
    check_config(cfg, training=True)
    if int(os.environ.get("RANK", 0)) == 0:
        print(dump_config(cfg))
    return 0 if args.dry_run else train(cfg, args.overwrite)


if __name__ == "__main__":
    sys.exit(main())
