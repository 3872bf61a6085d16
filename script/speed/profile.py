"""`benchmark.py train --profile`: where the time of a training step goes."""

from __future__ import annotations

import argparse

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from engine.transfer import move_batch
from script.speed.inputs import open_world
from script.speed.measure import describe_machine, synchronise
from script.speed.training import OurTrainer, make_seeds

TOP = 12  # operators shown
STAGES = ("data", "prompt module", "text transformer", "UNet, forward", "loss", "backward", "optimiser")


class ProfiledTrainer(OurTrainer):
    """The same step with its stages marked; the device is waited for after each."""

    def run(self, steps: int) -> int:
        matcher = self.matcher
        self.mark(matcher.text.text_model, "text transformer")
        self.mark(self.prompt, "prompt module")
        self.mark(matcher.objective, "loss")
        self.mark(matcher.diffusion.unet, "UNet, forward")
        for _ in range(steps):
            self._step()
        return steps * self.cfg.TRAIN.BATCH_SIZE

    def _step(self) -> None:
        with self._stage("data"):
            batch = move_batch(next(self.batches), self.world.device)
        loss = self.matcher.loss(batch, make_seeds(batch, self.cfg.SEED)).mean()
        with self._stage("backward"):
            self.world.accelerator.backward(loss)
        with self._stage("optimiser"):
            self.learner.optimizer.step()
            self.learner.optimizer.zero_grad()

    def _stage(self, name: str) -> Stage:
        return Stage(name, self.world.device)

    def mark(self, module: torch.nn.Module, name: str) -> None:
        forward, stage = module.forward, self._stage

        def marked(*args, **kwargs):
            with stage(name):
                return forward(*args, **kwargs)

        module.forward = marked


class Stage(record_function):
    """A named span of the profile that ends when the device is done."""

    def __init__(self, name: str, device: torch.device):
        super().__init__(name)
        self._device = device

    def __exit__(self, *error: object) -> None:
        synchronise(self._device)
        super().__exit__(*error)


def run_profile(args: argparse.Namespace) -> str:
    """Markdown tables: stages of a step, and the operators that take most time."""
    with open_world(args) as world:
        trainer = ProfiledTrainer(world)
        OurTrainer.run(trainer, args.warmup)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (world.device.type == "cuda")
        with profile(activities=activities) as profiler, record_function("whole step"):
            trainer.run(args.steps)
        machine = describe_machine(world.device)
        batch_size = world.cfg.TRAIN.BATCH_SIZE
    events = {event.key: event for event in profiler.key_averages()}
    total = events["whole step"].cpu_time_total
    lines = [
        f"{args.network}, batch {batch_size}, {machine['device']}, {machine['threads']} thread(s), "
        f"{total / args.steps / 1e3:.1f} ms per step\n",
        "| stage | ms per step | share |\n|---|---|---|",
    ]
    times = {name: events[name].cpu_time_total for name in STAGES}
    times["rest (noise, latents, ...)"] = total - sum(times.values())
    lines += [f"| {name} | {time / args.steps / 1e3:.1f} | {time / total:.1%} |" for name, time in times.items()]
    lines.append("\n| operator | calls per step | ms per step | share |\n|---|---|---|---|")
    operators = [event for name, event in events.items() if name not in STAGES and name != "whole step"]
    own = "self_device_time_total" if world.device.type == "cuda" else "self_cpu_time_total"
    for event in sorted(operators, key=lambda event: getattr(event, own), reverse=True)[:TOP]:
        time = getattr(event, own)
        calls = event.count // args.steps
        lines.append(f"| {event.key} | {calls} | {time / args.steps / 1e3:.1f} | {time / total:.1%} |")
    return "\n".join(lines)
