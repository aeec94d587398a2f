"""The state of one conversation, or of several: what the KV cache holds, and the runner that extends it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from gguf_moe.arch.base import Arch
from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.positions import Positions
from gguf_moe.arch.weights import Weights
from gguf_moe.errors import ContextFullError, OptionError
from gguf_moe.experts.routing import Recorder, Replay
from gguf_moe.experts.use import ExpertUse
from gguf_moe.graph.decoder import build_graph
from gguf_moe.graph.task import Graph, Kind
from gguf_moe.runtime.cpu import CpuRunner
from gguf_moe.runtime.crew import Crew
from gguf_moe.runtime.gpu.device import Device
from gguf_moe.runtime.gpu.link import Rates
from gguf_moe.runtime.gpu.mailbox import MOST_PLACES
from gguf_moe.runtime.gpu.runner import GpuRunner
from gguf_moe.runtime.lower import lower
from gguf_moe.runtime.memory import Memory
from gguf_moe.runtime.program import Program, Row
from gguf_moe.runtime.runner import Runner, Step
from gguf_moe.runtime.sequence import CachedSequence, Part
from gguf_moe.runtime.state import State
from gguf_moe_kernels.cpu.library import KernelLibrary

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is to do."""


class Context:
    """A KV cache of n_ctx positions for each of n_seq_max sequences, and all that is needed to fill it.

    n_batch is the most tokens that one step takes; results depend neither on it nor on what other sequences
    bring to a step. With `replay` the tokens go to the experts of its steps, one after the other, and not to
    those that the routers choose.
    """

    def __init__(
        self,
        arch: Arch,
        hparams: HParams,
        weights: Weights,
        *,
        n_ctx: int,
        n_batch: int,
        kv_kind: Kind,
        replay: Replay | None = None,
        n_seq_max: int = 1,
    ):
        self.n_ctx = n_ctx
        self.n_batch = n_batch
        goes_back = not any(hparams.is_recr)
        self.sequences = [CachedSequence(number * n_ctx, goes_back) for number in range(n_seq_max)]
        self.recorder: Recorder | ExpertUse | None = None
        """Learns what the routers choose, from the moment it is set."""
        self._replay = replay
        self._expert_layers = [il for il, block in enumerate(weights.blk) if block.experts]
        self._hparams = hparams
        self._positions = Positions(arch, hparams, weights, n_ctx)
        self._memory = Memory()
        self._weights = weights
        self._make_graph = functools.partial(
            build_graph,
            arch,
            hparams,
            weights,
            n_ctx=n_ctx,
            kv_kind=kv_kind,
            injects_routing=replay is not None,
            n_seq_max=n_seq_max,
        )
        self.graph: Graph = self._make_graph(n_tokens=n_batch)
        self.state = State(self.graph, self.sequences)
        """What it remembers from step to step, and how that is read, written and copied."""
        self._runner: Runner | None = None

    @property
    def has_experts(self) -> bool:
        """Whether any layer is a mixture of experts."""
        return bool(self._expert_layers)

    @property
    def gpu(self) -> GpuRunner | None:
        """What runs the steps on a GPU; None on the CPU alone."""
        return self._runner if isinstance(self._runner, GpuRunner) else None

    def record_routing(self) -> Recorder:
        """Record from now on what the routers choose. Raises OptionError for a model without experts."""
        hp = self._hparams
        if not self._expert_layers:
            raise OptionError("this model has no experts, so there is no routing to record.")
        self.recorder = recorder = Recorder(hp.n_layer, self._expert_layers, hp.n_expert, hp.n_expert_used)
        return recorder

    def watch_experts(self) -> ExpertUse:
        """Count from now on how much each expert is used; what was recorded before ends."""
        self.recorder = use = ExpertUse(self._expert_layers, self._hparams.n_expert)
        return use

    def rows(self, n_threads: int) -> list[Row]:
        """The program's rows for so many threads; their kernels must be in the library before `start`."""
        return lower(self.graph, self._memory, n_threads)

    def start(self, rows: list[Row], library: KernelLibrary, n_threads: int) -> None:
        """Put the program together and make the threads."""
        program, crew = Program(rows, library), Crew(n_threads, library)
        n_expert_used = self._hparams.n_expert_used
        self._run_on(CpuRunner(self._memory, program, crew, self._expert_layers, n_expert_used))

    def prepare_gpu(
        self,
        device: Device,
        n_threads: int,
        policy: str,
        prompt_bytes: int = 0,
        rates: Rates | None = None,
        is_registered: bool = True,
    ) -> GpuRunner:
        """A runner for a GPU, which owns the device from now on.

        Before `start_gpu` its `kernels` must be prepared on the device, those of its `rows` in the library,
        and room for experts allocated. The longest chunk of a prompt becomes what a post has room for; with
        prompt_bytes of the memory for experts long prompts run in longer ones. is_registered: the device can
        read the file where it lies.
        """
        self.n_batch = min(self.n_batch, max(1, MOST_PLACES // max(1, self._hparams.n_expert_used)))
        return GpuRunner(
            device,
            self._weights,
            lambda n_tokens, n_outputs: self._make_graph(n_tokens=n_tokens, n_outputs=n_outputs),
            n_batch=self.n_batch,
            n_ctx=self.n_ctx,
            n_threads=n_threads,
            policy=policy,
            prompt_bytes=prompt_bytes,
            rates=rates,
            is_registered=is_registered,
        )

    def start_gpu(self, runner: GpuRunner, library: KernelLibrary) -> None:
        """Let the runner take the steps from now on."""
        runner.start(library)
        self._run_on(runner)

    def _run_on(self, runner: Runner) -> None:
        self._runner = self.state.runner = runner

    @property
    def _running(self) -> Runner:
        assert self._runner is not None, "start() comes first"
        return self._runner

    @property
    def tokens(self) -> list[int]:
        """What the cache holds of the first sequence."""
        return self.sequences[0].tokens

    def extend(self, tokens: Sequence[int], n_outputs: int, progress: Progress | None = None) -> np.ndarray:
        """Append tokens to the first sequence, chunk by chunk; the logits of the last n_outputs of them.

        Returns float32 [n_outputs, n_vocab], until the next step. If it is interrupted, the cache holds the
        chunks that were finished; with recurrent layers it goes back to kept states or to nothing. Raises
        ContextFullError.
        """
        self._check_room(self.sequences[0], len(tokens))
        n = len(tokens)
        logits = np.empty((n_outputs, self._hparams.n_vocab), np.float32)
        self._running.make_room(len(self.tokens) + n)
        end = 0
        while end < n:
            most = self._running.long_step(n - end, n_outputs) or self.n_batch
            size, keeps_states = self.sequences[0].next_piece(n - end, most)
            chunk = tokens[end : end + size]
            end += len(chunk)
            wanted = min(len(chunk), max(0, end - (n - n_outputs)))
            first = end - wanted - (n - n_outputs)
            of_chunk = self._run([Part(self.sequences[0], chunk, wanted, keeps_states)])[0]
            if wanted == n_outputs:
                logits = of_chunk
            else:
                logits[first : first + wanted] = of_chunk
            if progress:
                progress(end, n)
        return logits

    def step(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """Append tokens to different sequences in one step of n_batch tokens at most.

        Returns the wanted logits of each part, float32 [n_outputs, n_vocab], until the next step. If it is
        interrupted, no sequence has become longer; with recurrent layers they go back to kept states or to
        nothing. Raises ContextFullError.
        """
        n_tokens = sum(len(part.tokens) for part in parts)
        assert n_tokens <= self.n_batch, f"a step of {n_tokens} tokens"
        return self._run(parts)

    def truncate(self, n: int) -> int:
        """Forget all but the first n tokens of the first sequence, or more (sequence.py); how many remain."""
        return self.sequences[0].truncate(n)

    def cache_layout(self) -> bytes:
        """Equal for contexts whose caches mean the same: the buffers' rows, and the angles of positions."""
        angles = self._positions.inputs(1, 1)
        return self.state.layout().encode() + b"".join(angles[name].tobytes() for name in sorted(angles))

    def close(self) -> None:
        """Join the threads and give the memory back."""
        if self._runner:
            self._runner.close()
        self._runner = self.state.runner = None
        self._memory = Memory()

    def _run(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """A step of any length that the runner can take."""
        for part in parts:
            self._check_room(part.sequence, len(part.tokens))
            self.state.bring_back(part.sequence)
        tokens = [token for part in parts for token in part.tokens]
        ends = accumulate(len(part.tokens) for part in parts)
        outputs = [i for part, end in zip(parts, ends, strict=True) for i in range(end - part.n_outputs, end)]
        n_past = len(parts[0].sequence.tokens)
        try:
            logits = self._running.run(Step(tokens, n_past, outputs, self._inputs(parts, len(tokens))))
        except BaseException:
            for part in parts:
                if not part.sequence.goes_back:
                    part.sequence.go_back(len(part.sequence.tokens))
            raise
        for part in parts:
            part.sequence.tokens.extend(part.tokens)
            if part.keeps_states:
                self.state.keep(part.sequence)
        if self.recorder:
            self.recorder.add(self._running.chosen(len(tokens)))
        stops = accumulate(part.n_outputs for part in parts)
        return [logits[stop - part.n_outputs : stop] for part, stop in zip(parts, stops, strict=True)]

    def _inputs(self, parts: Sequence[Part], n_tokens: int) -> dict[str, np.ndarray]:
        """What the graph reads of each token, by name."""
        of_parts = [self._positions.inputs(len(part.sequence.tokens), len(part.tokens)) for part in parts]
        inputs = {name: np.concatenate([of_part[name] for of_part in of_parts]) for name in of_parts[0]}
        if self._replay:
            inputs["injected_topk"] = self._replay.take(n_tokens)
        if len(self.sequences) > 1:
            inputs["inp_cells"] = np.concatenate([part.cells() for part in parts])
        return inputs

    def _check_room(self, sequence: CachedSequence, n: int) -> None:
        if len(sequence.tokens) + n > self.n_ctx:
            raise ContextFullError(
                f"{n} more tokens do not fit into the context of {self.n_ctx}, which holds "
                f"{len(sequence.tokens)}; use a larger context (--ctx) or a shorter prompt."
            )
