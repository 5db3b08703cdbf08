"""Train a byte-level GPT on Shakespeare's plays with DDP and a choice of gradient exchange.

    torchrun --nproc-per-node 2 examples/train_gpt.py --comm gct --bits 2
    torchrun --nproc-per-node 2 examples/train_gpt.py --comm fp32
    python examples/train_gpt.py --comm fp32            # one process

Ranks read different windows of the same text. The held-out loss is measured on the same windows
in every run. Bytes on the wire are counted, see wire.py.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from comm import add_comm_arguments, gct_options, register_comm
from evaluation import HeldOut
from extra import how_to_install
from measure import Measurement, describe
from model import GPT, GPTConfig, loss_per_byte, parameter_count
from runlog import RunLog
from text import load_corpus
from torch.nn.parallel import DistributedDataParallel
from training import Batches, learning_rate, make_optimizer, set_learning_rate

try:
    from tqdm import tqdm  # type: ignore[import-untyped]
except ImportError:
    sys.exit(f"The example needs tqdm: {how_to_install('tqdm')}.")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_argument_group("model")
    size.add_argument("--width", type=int, default=256)
    size.add_argument("--layers", type=int, default=4)
    size.add_argument("--heads", type=int, default=4)
    size.add_argument("--context", type=int, default=128)
    size.add_argument("--tied", action="store_true", help="share the two embeddings")
    run = parser.add_argument_group("run")
    run.add_argument("--steps", type=int, default=600)
    run.add_argument("--batch-size", type=int, default=16, help="windows per rank and step")
    run.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    run.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    run.add_argument("--warmup", type=int, default=50, help="steps of warm-up")
    run.add_argument("--weight-decay", type=float, default=0.1)
    run.add_argument("--clip", type=float, default=1.0, help="gradient norm; 0 for none")
    run.add_argument("--seed", type=int, default=1)
    run.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: GPU LOCAL_RANK, if so many"
    )
    run.add_argument("--bucket-mb", type=float, default=25.0, help="DDP's bucket size")
    # Not "--log": torchrun would take that for an abbreviation of its own options.
    run.add_argument("--log-file", type=Path, help="JSON lines file")
    run.add_argument("--log-every", type=int, default=10, help="steps between log lines")
    run.add_argument("--eval-every", type=int, default=100, help="steps between evaluations")
    run.add_argument(
        "--eval-windows", type=int, default=256, help="held-out windows used on the way"
    )
    run.add_argument("--final-windows", type=int, default=0, help="at the end; 0 (default): all")
    run.add_argument("--name", help="name of the run in the progress bar; default: --comm")
    add_comm_arguments(parser)
    args = parser.parse_args(argv)
    for name in ("steps", "batch_size", "log_every", "eval_every", "eval_windows"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected 1 or more")
    return args


@contextmanager
def process_group() -> Iterator[None]:
    """Join torchrun's process group; without torchrun make one of a single process."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Run:
    """One training run on this rank."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        corpus = load_corpus()
        torch.manual_seed(args.seed)  # same initial weights in every run of a seed
        config = GPTConfig(args.width, args.layers, args.heads, args.context, args.tied)
        self.device = choose_device(args.device)
        self.model = DistributedDataParallel(
            GPT(config).to(self.device), bucket_cap_mb=args.bucket_mb
        )
        self.comm_state = register_comm(self.model, args)
        self.batches = Batches(
            corpus.train, args.batch_size, args.context, args.seed, dist.get_rank()
        )
        self.held_out = HeldOut(corpus.held_out, args.context, device=self.device)
        self.optimizer = make_optimizer(self.model, args.lr, args.weight_decay, args.optimizer)
        self.elements = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.log = RunLog(args.log_file if dist.get_rank() == 0 else None)
        self.measurement = Measurement(self.elements, steady_from(args))
        self.loss = float("nan")

    def train(self) -> dict[str, Any]:
        """Run all steps; return the summary that was logged."""
        args = self.args
        self.log.write("config", **describe(args, self.elements, gct_options(args)))
        bar = tqdm(
            total=args.steps,
            desc=args.name or args.comm,
            disable=dist.get_rank() != 0,
            mininterval=0.5 if sys.stderr.isatty() else 15.0,  # few lines in a CI log
        )
        self.measurement.resume()
        for step in range(args.steps):
            self._step(step)
            self.measurement.end_step()
            bar.update()
            if (step + 1) % args.log_every == 0 or step + 1 == args.steps:
                self._report(step + 1, bar)
            if (step + 1) % args.eval_every == 0 or step + 1 == args.steps:
                self._evaluate(step + 1, args.eval_windows)
        self.measurement.pause()
        bar.close()
        return self._summarize()

    def _step(self, step: int) -> None:
        args = self.args
        inputs, targets = (t.to(self.device) for t in self.batches.next())
        loss = loss_per_byte(self.model(inputs), targets)
        loss.backward()
        if args.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), args.clip)
        set_learning_rate(self.optimizer, learning_rate(step, args.steps, args.lr, args.warmup))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = loss.item()
        if self.args.gct_monitor and self.comm_state is not None:
            self.comm_state.monitor.log(loss=self.loss)

    def _report(self, step: int, bar: Any) -> None:
        """Log rank 0's own view: its loss, the bytes it sent."""
        now = self.measurement.snapshot()
        self.log.write("step", step=step, train_loss=self.loss, **now)
        tokens = self.args.batch_size * self.args.context * dist.get_world_size()
        shown = {"loss": f"{self.loss:.3f}", "tok/s": f"{tokens * step / now['seconds']:,.0f}"}
        if now["wire_bytes"] is not None:
            per_step = self.measurement.recent_bytes_per_step()
            shown["wire"] = f"{per_step / 1e3:,.0f} kB/step"
            shown["bits/el"] = f"{self.measurement.bits_per_element(per_step):.2f}"
        bar.set_postfix(shown, refresh=False)

    def _evaluate(self, step: int, windows: int) -> None:
        self.measurement.pause()  # its traffic and time are not training's
        loss = self.held_out.loss(self.model.module, windows)
        counts = self.measurement.snapshot()
        if self.args.gct_monitor and self.comm_state is not None:
            self.comm_state.monitor.log(held_out_loss=loss)
        self.log.write("evaluation", step=step, held_out_loss=loss, windows=windows, **counts)
        self.measurement.resume()

    def _summarize(self) -> dict[str, Any]:
        """A collective call: final held-out loss, means over ranks."""
        windows = self.args.final_windows or len(self.held_out)
        summary: dict[str, Any] = {
            "held_out_loss": self.held_out.loss(self.model.module, windows),
            "held_out_windows": min(windows, len(self.held_out)),
            **self.measurement.summary(),
            "replicas_identical": replicas_identical(self.model),
        }
        if self.comm_state is not None:
            stats = self.comm_state.stats()
            names = ["raw_bytes", "wire_bytes", "ratio", "plain_bytes"]
            if math.isfinite(stats["bits_per_element"]):  # one rank sends nothing
                names.append("bits_per_element")
            summary["gct_stats"] = {name: stats[name] for name in names}
        self.log.write("summary", **summary)
        return summary


def choose_device(name: str) -> torch.device:
    """Return the CPU, or a GPU: ranks share one where there are too few."""
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU; leave the option out.")
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def steady_from(args: argparse.Namespace) -> int:
    """First step of the steady state: after bucket rebuild and after compression has begun."""
    starts: dict[str, int] = {"powersgd": args.powersgd_start, "gct": args.start_step or 0}
    start = starts.get(args.comm, 0)
    return min(max(5, start + 2), int(args.steps) // 2)


def replicas_identical(model: torch.nn.Module) -> bool:
    """Compare a digest of all parameters over the ranks."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    digests: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, digest.hexdigest())
    return len(set(digests)) == 1


def print_summary(args: argparse.Namespace, summary: dict[str, Any]) -> None:
    print(f"held-out loss  {summary['held_out_loss']:.4f} nats/byte")
    print(f"step           {summary['seconds_per_step'] * 1e3:.0f} ms (median)")
    if summary["wire_bytes_per_step"] is not None:
        steady, total = summary["wire_bytes_per_step"], summary["wire_bytes"]
        bits = summary["bits_per_element"]
        print(f"wire           {steady:,.0f} bytes/step and rank, {bits:.2f} bits/element")
        print(f"               {total:,.0f} bytes in all {args.steps} steps")
    if "gct_stats" in summary:
        print(f"gct.stats()    {summary['gct_stats']}")


def main() -> None:
    args = parse_arguments()
    with process_group():
        run = Run(args)
        if dist.get_rank() == 0:
            count = parameter_count(run.model)
            print(f"{count:,} parameters, {dist.get_world_size()} processes, --comm {args.comm}")
        summary = run.train()
        if dist.get_rank() == 0:
            print_summary(args, summary)
        if not summary["replicas_identical"]:
            raise SystemExit("The ranks ended with different parameters: the exchange is broken.")


if __name__ == "__main__":
    main()
