"""A loaded model: the file, its tokenizer, its decoder and one conversation's KV cache."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from gguf_moe import completions
from gguf_moe.arch import find_arch
from gguf_moe.arch.hparams import read_hparams
from gguf_moe.arch.weights import load_weights
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import BusyError, ContextFullError, OptionError, TemplateError
from gguf_moe.experts.heat import HeatOwner, load_heat, save_heat
from gguf_moe.experts.routing import Recorder
from gguf_moe.generate import Continuation, Generation, Piece, Result, decode_loop, until, watching
from gguf_moe.options import Options
from gguf_moe.runtime import machine, placement
from gguf_moe.runtime.context import Context
from gguf_moe.runtime.gpu import placement as gpu_placement
from gguf_moe.runtime.gpu.device import Device
from gguf_moe.runtime.gpu.placement import GpuBudget
from gguf_moe.runtime.gpu.runner import GpuRunner
from gguf_moe.runtime.ready import prepare_gpu, start_on_cpu, start_on_gpu
from gguf_moe.sample import Breakers, Sampler, Sampling, find_breakers
from gguf_moe.sample.sampling import NAMES as SAMPLING_NAMES
from gguf_moe.scheduler import Scheduler
from gguf_moe.session import load_session, save_session
from gguf_moe.stats import Totals, describe
from gguf_moe.text.chat_template import ChatTemplate, find_chat_template
from gguf_moe.text.reasoning import Splitter, splitter_for
from gguf_moe.text.tokenizer import Tokenizer, build_tokenizer
from gguf_moe_kernels.cpu.library import FillCache, KernelLibrary

Progress = Callable[[str, int, int], None]
"""Called with the stage ("reading", "compiling", "prompt"), how much is done, and how much there is to do."""


@dataclass(slots=True)
class LoadTimes:
    """Seconds that loading took; `compile_s` is part of `load_s`."""

    load_s: float = 0.0
    compile_s: float = 0.0
    n_compiled: int = 0


class Model:
    """Use it as a context manager, or call `close`. One call at a time: a second one raises BusyError.

    `fill_cache` may compile kernels in a way of its own, as in other processes; a model itself starts none.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: Options,
        progress: Progress | None = None,
        fill_cache: FillCache | None = None,
    ):
        start = time.perf_counter()
        self.load_times = LoadTimes()
        self.totals = Totals()
        """Of all generations so far."""
        self._lock = threading.Lock()
        self._closed = False
        self._breakers: dict[tuple[str, ...], Breakers] = {}
        self._checkpoint = open_checkpoint(path, mmap=options.mmap, progress=_stage(progress, "reading"))
        self.path: Path = self._checkpoint.path
        self.metadata = self._checkpoint.metadata
        self.arch = find_arch(self.metadata)
        self.hparams = read_hparams(self.metadata, self.arch)
        self.tokenizer: Tokenizer = build_tokenizer(self.metadata, pre=options.pre_tokenizer)
        self.chat_template: ChatTemplate | None = find_chat_template(self.metadata, self.tokenizer)
        weights = load_weights(self._checkpoint, self.arch, self.hparams)
        self.kv_kind = placement.kv_kind(options.kv_type, weights)
        device = gpu_placement.open_device(
            options.device, self.arch, self.hparams, weights, options.cache_dir
        )
        budget = GpuBudget(device, options.vram) if device else None
        self.n_parallel = 1 if device else options.parallel
        """How many sequences the KV cache has room for; a GPU's cache has one."""
        if budget:
            self.n_ctx = budget.n_ctx(self.hparams, self.kv_kind, options.n_ctx)
        else:
            self.n_ctx = placement.context_length(
                self._checkpoint, self.hparams, self.kv_kind, options.n_ctx, self.n_parallel
            )
        self.bytes_per_token = weights.bytes_per_token(self.hparams.n_expert_used)
        """Bytes of weights that one generated token reads."""
        self.n_threads = options.threads or machine.default_threads(beside_gpu=device is not None)
        self._library = KernelLibrary(options.cache_dir, fill_cache)
        self._context = Context(
            self.arch,
            self.hparams,
            weights,
            n_ctx=self.n_ctx,
            n_batch=max(min(options.n_batch, self.n_ctx), self.n_parallel),
            kv_kind=self.kv_kind,
            n_seq_max=self.n_parallel,
        )
        self.gpu: GpuRunner | None = None
        """What runs on the GPU, with its cache of experts; None on the CPU alone."""
        try:
            if device and budget:
                self._start_gpu(device, budget, options.policy, progress)
            else:
                self._start(progress)
            if options.mmap:
                placement.warm_page_cache(self._checkpoint, _stage(progress, "reading"))
            if self.gpu:
                if options.heat is not None:
                    self.gpu.slots.warm(load_heat(options.heat, self._heat_owner(self.gpu)))
                self.gpu.slots.fill()
        except BaseException:
            self.close()
            if device:
                device.close()
            raise
        self.load_times.load_s = time.perf_counter() - start

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Join the threads and free the memory. Waits for a call in another thread; twice is fine."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._context.close()
                self._library.close()
                self._checkpoint.close()

    def tokenize(self, text: str, *, bos: bool | None = None, special: bool = True) -> list[int]:
        """Token ids of a text. `bos` None does as the file says; `special` reads control tokens in it."""
        return self.tokenizer.encode(text, bos=bos, special=special)

    def detokenize(self, ids: Sequence[int], *, special: bool = True) -> str:
        """The text of token ids; `special` shows control tokens."""
        return self.tokenizer.decode(ids, special=special)

    def logits(self, ids: Sequence[int], progress: Progress | None = None) -> np.ndarray:
        """The logits after each of the tokens, in a fresh context: float32 [len(ids), n_vocab].

        Raises OutOfMemoryError if that is more than the machine has.
        """
        ids = self._checked_ids(ids)
        placement.check_memory(4 * len(ids) * self.hparams.n_vocab, f"the logits of {len(ids)} tokens")
        with self._in_use():
            self._context.truncate(0)
            return self._context.extend(ids, len(ids), _stage(progress, "prompt"))

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        sampling: Sampling | None = None,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
        **sampling_options: Any,
    ) -> Generation:
        """Continue a prompt, piece by piece.

        prompt: text, or token ids taken as they are. max_tokens None goes on until the model ends or the
        context is full. `sampling`, or its fields as keyword arguments (temperature=0, seed=1, ...).
        cancel: once it is set, from any thread, the generation ends after the step that runs.
        Raises ContextFullError before any work if the prompt does not fit.
        """
        continuation = self.continuation(
            prompt, max_tokens=max_tokens, stop=stop, sampling=sampling, **sampling_options
        )
        return Generation(self._pieces(continuation, progress, cancel), continuation.result)

    def continuation(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        sampling: Sampling | None = None,
        n_logprobs: int | None = None,
        **sampling_options: Any,
    ) -> Continuation:
        """What `generate` runs, or a scheduler among others; n_logprobs as for Continuation."""
        if sampling_options:
            sampling = _sampling(sampling, sampling_options)
        if max_tokens is not None and max_tokens < 0:
            raise OptionError(f"max_tokens is {max_tokens}, but must be 0 or more.")
        ids = self._checked_ids(self.tokenize(prompt) if isinstance(prompt, str) else prompt)
        return Continuation(
            self.tokenizer,
            self.sampler(sampling or Sampling()),
            Result(prompt_token_ids=ids),
            max_tokens=max_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            n_logprobs=n_logprobs,
        )

    @contextmanager
    def scheduler(self, n_waiting: int) -> Iterator[Scheduler]:
        """Several generations at once, as many as the option `parallel`; no other call can run beside it.

        n_waiting: how many more may wait. Jobs that are left when it closes end with BusyError.
        """
        with self._in_use():
            scheduler = Scheduler(self._context, n_waiting)
            try:
                yield scheduler
            finally:
                scheduler.fail_all(BusyError("the model was closed before the answer was complete."))

    def sampler(self, sampling: Sampling) -> Sampler:
        """A new sampler for this model's vocabulary. Raises OptionError for a token id that is not in it."""
        if wrong := [i for i in sampling.logit_bias if not 0 <= i < self.hparams.n_vocab]:
            raise OptionError(
                f"logit_bias has {wrong[0]}, which is not a token id of this model "
                f"(0 to {self.hparams.n_vocab - 1})."
            )
        texts = sampling.dry_sequence_breakers if sampling.dry_multiplier else ()
        if texts and texts not in self._breakers:
            self._breakers = {texts: find_breakers(texts, self.tokenizer)}
        return Sampler(sampling, self._breakers.get(texts))

    def create_completion(
        self, prompt: str | Sequence[int], *, stream: bool = False, **options: Any
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """A completion in OpenAI's shape, or with `stream` its chunks; other options as for `generate`."""
        complete = completions.stream_completion if stream else completions.completion
        return complete(self.generate(prompt, **options), self.path.stem)

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """An answer to OpenAI-style messages by the file's chat template; options as `generate`.

        template_options are variables for the template (enable_thinking=False, ...). A message's
        reasoning_content has what the model thought. Raises TemplateError.
        """
        prompt = self.chat_prompt(messages, tools=tools, **template_options or {})
        complete = completions.stream_chat_completion if stream else completions.chat_completion
        generation = self.generate(self.tokenize_prompt(prompt), **options)
        return complete(generation, self.splitter(prompt), self.path.stem)

    def chat_ids(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """The token ids of the prompt that the file's chat template makes of messages.

        `options` are variables for the template. Raises TemplateError.
        """
        return self.tokenize_prompt(self.chat_prompt(messages, **options))

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The text that the file's chat template makes of messages; options and errors as `chat_ids`."""
        if self.chat_template is None:
            raise TemplateError(f"{self.path}: the file has no chat template; give a raw prompt instead.")
        return self.chat_template.render([dict(message) for message in messages], **options)

    def tokenize_prompt(self, prompt: str) -> list[int]:
        """Token ids of a chat template's text, which may begin with the BOS token."""
        bos_token = self.chat_template.bos_token if self.chat_template else ""
        return self.tokenize(prompt, bos=False if bos_token and prompt.startswith(bos_token) else None)

    def splitter(self, prompt: str) -> Splitter:
        """What separates thoughts from the answer to a prompt of the chat template."""
        return splitter_for(self.chat_template.source if self.chat_template else "", prompt)

    def record_routing(self) -> Recorder:
        """Record from now on which experts are chosen; `routing` of the result is what save_routing takes.

        Raises OptionError for a model without experts.
        """
        return self._context.record_routing()

    def save_heat(self, path: str | os.PathLike[str]) -> None:
        """Write which experts were used most lately, for the option `heat`.

        Raises OptionError where there is no GPU or the policy keeps no heat, GGUFMoeError if the file cannot
        be written.
        """
        heat = self.gpu.slots.cache.heat() if self.gpu else None
        if self.gpu is None or heat is None:
            raise OptionError("there is no heat to save: it takes a GPU, and the policy decayed or static.")
        save_heat(path, heat, self._heat_owner(self.gpu))

    def _heat_owner(self, gpu: GpuRunner) -> HeatOwner:
        name = self.metadata.get("general.name")
        n_layer, n_expert = gpu.slots.cache.n_layer, gpu.slots.n_expert
        return HeatOwner(self.arch.name, name if isinstance(name, str) else "", n_layer, n_expert)

    def save_session(self, path: str | os.PathLike[str]) -> int:
        """Write the tokens in the KV cache with their keys and values; how many. Raises GGUFMoeError."""
        with self._in_use():
            return save_session(path, self._context, self._checkpoint)

    def load_session(self, path: str | os.PathLike[str]) -> list[int]:
        """Go on where a session was saved; its tokens. A prompt that begins with them computes only the rest.

        Raises GGUFMoeError if the file is damaged or of another model, ContextFullError.
        """
        with self._in_use():
            return load_session(path, self._context, self._checkpoint)

    @property
    def n_cached(self) -> int:
        """Tokens that the KV cache holds."""
        return len(self._context.tokens)

    def stats(self) -> dict[str, Any]:
        """Numbers about the model and all that it did, ready for JSON; what they mean: docs/python.md."""
        with self._in_use():
            return describe(self)

    def _pieces(
        self, continuation: Continuation, progress: Progress | None, cancel: threading.Event | None
    ) -> Generator[Piece]:
        told, result = _stage(progress, "prompt"), continuation.result
        with self._in_use():
            pieces = decode_loop(self._context, continuation, watching(cancel, told) if cancel else told)
            try:
                yield from until(cancel, pieces, result) if cancel else pieces
            finally:
                self.totals.add(result)

    def _start(self, progress: Progress | None) -> None:
        """Compile what is not cached, then make the program and the threads."""
        start = time.perf_counter()
        compiling = progress and (lambda name, done, total: progress("compiling", done, total))
        self.load_times.n_compiled = start_on_cpu(self._context, self._library, self.n_threads, compiling)
        self.load_times.compile_s = time.perf_counter() - start

    def _start_gpu(self, device: Device, budget: GpuBudget, policy: str, progress: Progress | None) -> None:
        """The same with a GPU, which also gets the weights that are always used, and room for experts."""
        start = time.perf_counter()
        compiling = progress and (lambda name, done, total: progress("compiling", done, total))
        self.gpu, self.load_times.n_compiled = prepare_gpu(
            self._context,
            device,
            self._checkpoint,
            self._library,
            self.n_threads,
            policy,
            compiling,
            prompt_bytes=budget.prompt_bytes,
        )
        self.load_times.compile_s = time.perf_counter() - start
        start_on_gpu(self._context, self.gpu, budget, self._library)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise BusyError("the model is busy with another call; wait, or load a second model.")
        try:
            if self._closed:
                raise BusyError(f"the model {self.path} was closed; load it again.")
            yield
        finally:
            self._lock.release()

    def _checked_ids(self, ids: Sequence[int]) -> list[int]:
        """The ids as a list: at least one, all in the vocabulary, and room for one more in the context."""
        ids = [int(i) for i in ids]
        if not ids:
            raise OptionError("the prompt is empty and the model has no BOS token; give it some text.")
        if wrong := [i for i in ids if not 0 <= i < self.hparams.n_vocab]:
            raise OptionError(
                f"{wrong[0]} is not a token id of this model (0 to {self.hparams.n_vocab - 1})."
            )
        if len(ids) > self.n_ctx:
            raise ContextFullError(
                f"the prompt has {len(ids)} tokens, but the context holds {self.n_ctx}; "
                "use a larger context (--ctx) or a shorter prompt."
            )
        return ids


def _stage(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    return progress and (lambda done, total: progress(stage, done, total))


def _sampling(sampling: Sampling | None, changes: dict[str, Any]) -> Sampling:
    unknown = sorted(set(changes) - SAMPLING_NAMES)
    if unknown:
        raise OptionError(f"{unknown[0]} is not a sampling option; see gguf_moe.Sampling.")
    return replace(sampling or Sampling(), **changes)
