"""One side of the comparison of GRPO steps, in a process of its own, with a clock on each phase."""

import gc
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgrpo.training.launch import CHILD_ENVIRONMENT

SIDES = STOCK, OURS, OURS_BFLOAT16 = ("trl", "medgrpo", "medgrpo, bfloat16 rollout")
PHASES = ("prefill", "decode", "loss forward", "backward", "optimiser")


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison; lengths in tokens."""

    group: int = 4
    prompt: int = 400
    completion: int = 64
    prompts: int = 4


@dataclass(frozen=True)
class Setup:
    """What both sides share.

    Attributes:
        base: model name or directory.
        records: PubMedQA's ori_pqal.json, or None for synthetic records.
        budget: our tokens in a micro-batch.
        micro_batch: TRL's completions in a micro-batch.
        folder: where gradients are exchanged.
    """

    base: str
    records: Path | None
    budget: int
    micro_batch: int
    folder: str


class Worker:
    """One side in a process of its own, asked through a pipe."""

    def __init__(self, setup: Setup, case: Case, side: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, self._there = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._there, setup, case, side), daemon=True)
        self._environment = {} if side == STOCK else CHILD_ENVIRONMENT

    def __enter__(self) -> "Worker":
        with _environment(self._environment):
            self._process.start()
        self._there.close()
        return self

    def ask(self, method: str, *args: Any) -> Any:
        """What a method of the `_Side` in the process returns."""
        try:
            self._pipe.send((method, args))
            return self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            # A side that stopped for a reason has said it.
            sys.exit(self._process.exitcode or "one side ended without a word.")

    def __exit__(self, *_: Any) -> None:
        self._process.terminate()
        self._process.join()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """What processes started meanwhile find in their environment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def _serve(pipe: Any, setup: Setup, case: Case, side: str) -> None:
    """Answer what is asked until the parent ends this process."""
    from medgrpo.errors import MedgrpoError

    try:
        bench = _Side(setup, case, side)
    except MedgrpoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    while True:
        method, args = pipe.recv()
        pipe.send(getattr(bench, method)(*args))


class _Side:
    """A trainer that can be stepped one at a time, with a clock on each phase."""

    def __init__(self, setup: Setup, case: Case, side: str) -> None:
        import torch

        from medgrpo.training import logprobs

        torch.manual_seed(0)
        logprobs.install()
        self.setup, self.case, self.side = setup, case, side
        self.seconds: dict[str, float] = defaultdict(float)
        self.trainer = _trainer(setup, case, side)
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = self.trainer.args.gradient_accumulation_steps
        self.batches = _batches(self.trainer)
        self._time_phases()
        _reset_peak_memory()

    def rollout(self) -> Path:
        """Generate and score one batch, and leave it in a file."""
        import torch

        batch = self.trainer._generate_and_score_completions(next(self.batches))
        path = Path(self.setup.folder) / f"{self.side} rollout.pt"
        torch.save({name: value.cpu() for name, value in batch.items()}, path)
        return path

    def gradients(self, rollout: Path) -> Path:
        """Gradients of one step on a given rollout, in a file."""
        import torch

        trainer = self.trainer
        batch = {name: value.to(trainer.accelerator.device) for name, value in torch.load(rollout).items()}
        prepare = trainer._prepare_inputs
        rows = trainer.args.per_device_train_batch_size
        trainer.model.zero_grad()
        for start in range(0, len(batch["advantages"]), rows):
            part = {n: v[start : start + rows] if v.dim() else v for n, v in batch.items()}
            trainer._prepare_inputs = lambda inputs, part=part: part
            trainer.training_step(trainer.model, None, None)
        trainer._prepare_inputs = prepare
        trainer._step = 0
        path = Path(self.setup.folder) / f"{self.side}.pt"
        torch.save({n: p.grad.cpu() for n, p in trainer.model.named_parameters() if p.requires_grad}, path)
        trainer.model.zero_grad()
        _reset_peak_memory()
        return path

    def step(self) -> dict[str, float]:
        """Seconds of one whole step and of its phases."""
        self.seconds.clear()
        gc.collect()
        batch = next(self.batches)
        started = _now()
        for _ in range(self.trainer.args.gradient_accumulation_steps):
            self.trainer.training_step(self.trainer.model, batch, None)
        with self._clock("optimiser"):
            self.trainer.accelerator.clip_grad_norm_(self.trainer.model.parameters(), 0.5)
            self.trainer.optimizer.step()
            self.trainer.model.zero_grad()
        return {"step": _now() - started, **{name: self.seconds[name] for name in PHASES}, "loss_flops": self._flops()}

    def peak_memory(self) -> float:
        """Peak memory of this side in GB: resident on a CPU, allocated on a GPU."""
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e9
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9

    def matmul_peak(self, size: int = 2048, repeats: int = 5) -> float:
        """Best measured float32 matrix product, operations per second."""
        import torch

        one, other = (torch.randn(size, size, device=self.trainer.accelerator.device) for _ in range(2))
        best = float("inf")
        for _ in range(repeats + 1):
            started = _now()
            one @ other
            best = min(best, _now() - started)
        return 2 * size**3 / best

    def _time_phases(self) -> None:
        trainer = self.trainer
        generate, loss, backward = trainer._generate_single_turn, trainer._compute_loss, trainer.accelerator.backward
        model = trainer.accelerator.unwrap_model(trainer.model)
        base = model.get_base_model()
        forward = base.forward

        def timed_generate(*args: Any, **options: Any) -> Any:
            first: list[float] = []

            def noticing(*args: Any, **options: Any) -> Any:
                output = forward(*args, **options)
                first.append(_now()) if not first else None
                return output

            # `generate` reads the signature of forward.
            noticing.__wrapped__ = forward  # type: ignore[attr-defined]
            base.forward = noticing
            started = _now()
            try:
                return generate(*args, **options)
            finally:
                base.forward = forward
                if first:
                    self.seconds["prefill"] += first[0] - started
                    self.seconds["decode"] += _now() - first[0]

        def timed(name: str, function: Any) -> Any:
            def run(*args: Any, **options: Any) -> Any:
                with self._clock(name):
                    return function(*args, **options)

            return run

        trainer._generate_single_turn = timed_generate
        trainer._compute_loss = timed("loss forward", loss)
        trainer.accelerator.backward = timed("backward", backward)

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        started = _now()
        yield
        self.seconds[name] += _now() - started

    def _flops(self) -> float:
        """Floating-point operations of the loss phase in our packing: forward, and backward to the inputs alone.

        Weights are frozen, so the backward pass through a matrix costs as much as the forward; the adapter's share and
        attention's are left out.
        """
        case, config = self.case, self.trainer.model.config
        weights = {name: p.numel() for name, p in self.trainer.model.named_parameters()}
        matrices = sum(n for name, n in weights.items() if "base_layer.weight" in name)
        tokens = case.prompts * (case.prompt + case.group * case.completion)
        head = case.prompts * case.group * case.completion * config.vocab_size * config.hidden_size
        return 4.0 * (matrices * tokens + head)


def _trainer(setup: Setup, case: Case, side: str) -> Any:
    import datasets
    import torch
    import trl

    from medgrpo.config import PolicyConfig
    from medgrpo.policies import load_trainable
    from medgrpo.training.grouped import GroupedGRPOTrainer

    datasets.disable_progress_bars()
    model, tokenizer = load_trainable(PolicyConfig(base=setup.base, lora_rank=16))
    # A token that is never written, so that every completion has the length asked for.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    rows = datasets.Dataset.from_list([{"prompt": text} for text in _prompts(setup, case, tokenizer)])
    completions = case.prompts * case.group
    micro = min(setup.micro_batch, completions) if side == STOCK else completions
    arguments = trl.GRPOConfig(
        output_dir=setup.folder,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=completions // micro,
        steps_per_generation=completions // micro,
        num_generations=case.group,
        max_completion_length=case.completion,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        learning_rate=1e-5,
        loss_type="dapo",
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        seed=1,
    )
    given = {
        "model": model,
        "reward_funcs": _reward,
        "args": arguments,
        "train_dataset": rows,
        "processing_class": tokenizer,
    }
    if side == STOCK:
        return trl.GRPOTrainer(**given)
    dtype = torch.bfloat16 if side == OURS_BFLOAT16 else None
    return GroupedGRPOTrainer(micro_batch_tokens=setup.budget, rollout_dtype=dtype, **given)


def _reward(completions: list[str], **_: Any) -> list[float]:
    """Different within every group."""
    # Squares: no completion earns exactly its group's mean, which would leave it out of our loss.
    return [float(place % 16) ** 2 for place in range(len(completions))]


def _prompts(setup: Setup, case: Case, tokenizer: Any) -> list[str]:
    """Abstracts with questions, cut or repeated to the case's length in tokens."""
    from medgrpo.domains import pubmedqa, synthetic
    from medgrpo.prompts import render_prompt

    path = setup.records
    records = pubmedqa.load(path).split("train") if path else synthetic.generate(count=100, seed=7)
    options = {"tokenize": False, "add_generation_prompt": True}
    texts = [tokenizer.apply_chat_template(render_prompt(record), **options) for record in records]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    wanted = [(one * (case.prompt // len(one) + 1))[: case.prompt] for one in ids[: 16 * case.prompts]]
    return [tokenizer.decode(one) for one in wanted]


def _batches(trainer: Any) -> Iterator[Any]:
    while True:
        yield from trainer.get_train_dataloader()


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _reset_peak_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
