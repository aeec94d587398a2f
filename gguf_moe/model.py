"""A loaded model: the file, its tokenizer, its decoder and one conversation's KV cache."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from gguf_moe import completions
from gguf_moe.continuations import Continuations, Prompt
from gguf_moe.errors import BusyError, OptionError
from gguf_moe.experts.heat import save_heat
from gguf_moe.experts.routing import Recorder
from gguf_moe.generate import Continuation, Generation, Piece, decode_loop, until, watching
from gguf_moe.loading import Loaded, Progress, stage_of
from gguf_moe.options import Options
from gguf_moe.prompts import ChatPrompt, Messages, Prompts, Tools
from gguf_moe.runtime import placement
from gguf_moe.sample import Sampling
from gguf_moe.scheduler import Scheduler
from gguf_moe.session import load_session, save_session
from gguf_moe.stats import Totals, describe
from gguf_moe_kernels.cpu.library import FillCache


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
        self._loaded = loaded = Loaded(path, options, progress, fill_cache)
        self._context, self._checkpoint = loaded.context, loaded.checkpoint
        self.path = loaded.checkpoint.path
        self.metadata = loaded.checkpoint.metadata
        self.arch = loaded.arch
        self.hparams = loaded.hparams
        self.tokenizer = loaded.tokenizer
        self.chat_template = loaded.chat_template
        self.kv_kind = loaded.kv_kind
        self.n_ctx = loaded.n_ctx
        self.n_parallel = loaded.n_parallel
        """How many sequences the KV cache has room for; a GPU's cache has one."""
        self.n_threads = loaded.n_threads
        self.bytes_per_token = loaded.bytes_per_token
        """Bytes of weights that one generated token reads."""
        self.gpu = loaded.gpu
        """What runs on the GPU, with its cache of experts; None on the CPU alone."""
        self.load_times = loaded.times
        self.totals = Totals()
        """Of all generations so far."""
        self.prompts = Prompts(self.path, self.tokenizer, self.chat_template)
        self._continuations = Continuations(self.tokenizer, self.hparams.n_vocab, self.n_ctx)
        self._lock = threading.Lock()
        self._user: int | None = None
        """The thread that holds the lock."""
        self._generations = weakref.WeakSet[Generation]()
        self._closed = False

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Join the threads and free the memory; twice is fine.

        A generation that this thread has left between two pieces ends; a call in another one is waited for.
        Raises BusyError from inside a call, as in a progress function.
        """
        if self._user == threading.get_ident():
            for generation in list(self._generations):
                generation.end(BusyError(f"the model {self.path} was closed before the text was complete."))
            if self._user == threading.get_ident():
                raise BusyError("the model cannot be closed inside a call to it; close it afterwards.")
        with self._lock:
            if not self._closed:
                self._closed = True
                self._loaded.close()

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
        ids = self._continuations.checked_ids(ids)
        placement.check_memory(4 * len(ids) * self.hparams.n_vocab, f"the logits of {len(ids)} tokens")
        with self._in_use():
            self._context.truncate(0)
            logits = self._context.extend(ids, len(ids), stage_of(progress, "prompt"))
            # Those of a single chunk are in the context's own memory.
            return logits if logits.flags.owndata else logits.copy()

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        sampling: Sampling | None = None,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
        **options: Any,
    ) -> Generation:
        """Continue a prompt, piece by piece.

        prompt: text, token ids taken as they are, or what `chat_prompt` gives. max_tokens None goes on until
        the model ends or the context is full. `sampling`, or its fields as keyword arguments (temperature=0,
        seed=1, ...).
        response_format, json_schema, grammar or regex: what the text must be, as for Continuations.make.
        cancel: once it is set, from any thread, the generation ends after the step that runs.
        Raises ContextFullError before any work if the prompt does not fit.
        """
        continuation = self.continuation(
            prompt, max_tokens=max_tokens, stop=stop, sampling=sampling, **options
        )
        generation = Generation(self._pieces(continuation, progress, cancel), continuation.result)
        self._generations.add(generation)
        return generation

    def continuation(self, prompt: Prompt, **options: Any) -> Continuation:
        """What `generate` runs, or a scheduler among others; options as Continuations.make takes them."""
        return self._continuations.make(prompt, **options)

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

    def create_completion(
        self, prompt: Prompt, *, stream: bool = False, **options: Any
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """A completion in OpenAI's shape, or with `stream` its chunks; other options as for `generate`."""
        complete = completions.stream_completion if stream else completions.completion
        return complete(self.generate(prompt, **options), self.path.stem)

    def create_chat_completion(
        self,
        messages: Messages,
        *,
        stream: bool = False,
        tools: Tools | None = None,
        tool_choice: Any = None,
        template_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """An answer to OpenAI-style messages by the file's chat template; options as `generate`.

        tools, tool_choice: what the model may call, or must, as `chat_prompt` takes them. template_options
        are variables for the template (enable_thinking=False, ...). A message's reasoning_content has what
        the model thought, tool_calls what it calls. Raises TemplateError.
        """
        prompt = self.chat_prompt(messages, tools=tools, tool_choice=tool_choice, **template_options or {})
        complete = completions.stream_chat_completion if stream else completions.chat_completion
        return complete(self.generate(prompt, **options), prompt.splitter(), self.path.stem)

    def chat_prompt(self, messages: Messages, **options: Any) -> ChatPrompt:
        """The prompt that the file's chat template makes of messages, for `generate`.

        Options as for Prompts.make: tools, tool_choice, and variables of the template. Raises TemplateError,
        or OptionError for tools that are wrong.
        """
        return self.prompts.make(messages, **options)

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
        heat = self.gpu.slots.heat() if self.gpu else None
        if self.gpu is None or heat is None:
            raise OptionError("there is no heat to save: it takes a GPU, and the policy decayed or static.")
        save_heat(path, heat, self._loaded.heat_owner)

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
        told, result = stage_of(progress, "prompt"), continuation.result
        with self._in_use():
            pieces = decode_loop(self._context, continuation, watching(cancel, told) if cancel else told)
            try:
                yield from until(cancel, pieces, result) if cancel else pieces
            finally:
                self.totals.add(result)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise BusyError("the model is busy with another call; wait, or load a second model.")
        try:
            if self._closed:
                raise BusyError(f"the model {self.path} was closed; load it again.")
            self._user = threading.get_ident()
            yield
        finally:
            self._user = None
            self._lock.release()
