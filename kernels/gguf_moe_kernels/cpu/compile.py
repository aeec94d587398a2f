"""From a Numba function to machine code: what a kernel is, and how its bytes come about.

Every kernel is a C function that takes and returns int64. Numba types and translates it (frontend.py). Its
code is put behind an entry point of a known name and optimized, which also removes what is there for Python.
The result is an object file that needs nothing but the C library: it runs without importing Numba.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba import from_dtype, types

from gguf_moe_kernels.cpu.frontend import frontend
from gguf_moe_kernels.cpu.library import ENTRY_POINT


@dataclass(frozen=True)
class Kernel:
    """A Python function and the signature to compile it with."""

    function: Callable[..., Any]
    signature: Any

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def kernel(function: Callable[..., Any]) -> Kernel:
    """Decorator: all arguments and the result are int64 (counts and addresses)."""
    n_args = function.__code__.co_argcount
    return Kernel(function, types.int64(*[types.int64] * n_args))


def op(arguments: np.dtype) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator for an op: int64 function(address of its arguments, chunk, thread).

    It computes one chunk of its work and returns 1, or returns 0 if there is no such chunk. `arguments` is
    the struct (see structs.py) that the first parameter points to; read it with `carray(args, 1)[0]`.
    """
    pointer = types.CPointer(from_dtype(arguments))
    return lambda function: Kernel(function, types.int64(pointer, types.int64, types.int64))


def compile_object(kernel: Kernel, target_machine: llvm.TargetMachine) -> bytes:
    """The kernel as an object file whose one visible symbol is ENTRY_POINT."""
    module, native_name = frontend().translate(kernel.function, kernel.signature)
    module.link_in(llvm.parse_assembly(_entry_point(native_name, kernel.signature)))
    module.verify()
    for symbol in (*module.functions, *module.global_variables):
        if not symbol.is_declaration and symbol.name != ENTRY_POINT:
            symbol.linkage = "internal"
    module.get_function(native_name).add_function_attribute("alwaysinline")
    builder = llvm.create_pass_builder(target_machine, _tuning())
    builder.getModulePassManager().run(module, builder)
    if needed := [f.name for f in module.functions if f.is_declaration and f.name.startswith("NRT_")]:
        raise TypeError(f"{kernel.function.__qualname__} is no kernel: it allocates memory ({needed[0]})")
    return target_machine.emit_object(module)


def _tuning() -> llvm.PipelineTuningOptions:
    """LLVM's own -O3, but vectors are made of loops only: of other code they gain nothing here."""
    tuning = llvm.create_pipeline_tuning_options(3)
    tuning.loop_vectorization, tuning.slp_vectorization = True, False
    return tuning


def _entry_point(native_name: str, signature: Any) -> str:
    """LLVM assembly of a function that calls Numba's and drops its error status: kernels never raise.

    Nor do they own memory: there are no references to count for the arrays that Numba makes of addresses.
    """
    kinds = ["ptr" if isinstance(a, types.CPointer) else "i64" for a in signature.args]
    parameters = ", ".join(f"{kind} %a{i}" for i, kind in enumerate(kinds))
    return f"""
declare i32 @{native_name}(ptr, ptr, {", ".join(kinds)})

define i64 @{ENTRY_POINT}({parameters}) {{
  %result = alloca i64
  %error = alloca ptr
  store i64 0, ptr %result
  call i32 @{native_name}(ptr %result, ptr %error, {parameters})
  %value = load i64, ptr %result
  ret i64 %value
}}

define void @NRT_incref(ptr %memory) {{
  ret void
}}

define void @NRT_decref(ptr %memory) {{
  ret void
}}
"""
