"""From a Numba function to machine code: what a kernel is, and how its bytes come about.

Every kernel is a C function that takes and returns int64. Numba types and optimizes it; its code is then put
behind an entry point of a known name, stripped of everything Numba added for Python, and emitted as an object
file that needs nothing but the C library. So a cached kernel runs without importing Numba.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba import cfunc, from_dtype, types

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
    """The kernel as an object file whose one visible function is ENTRY_POINT."""
    compiled = cfunc(kernel.signature, error_model="numpy")(kernel.function)
    native_name = compiled.native_name.removeprefix("cfunc.")
    module = llvm.parse_assembly(compiled.inspect_llvm() + _entry_point(native_name, kernel.signature))
    module.verify()
    for function in module.functions:
        if not function.is_declaration and function.name != ENTRY_POINT:
            function.linkage = "internal"
    module.get_function(native_name).add_function_attribute("alwaysinline")
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(target_machine, llvm.create_pipeline_tuning_options(3)))
    return target_machine.emit_object(module)


def _entry_point(native_name: str, signature: Any) -> str:
    """LLVM assembly of a function that calls Numba's and drops its error status: kernels never raise."""
    kinds = ["ptr" if isinstance(a, types.CPointer) else "i64" for a in signature.args]
    parameters = ", ".join(f"{kind} %a{i}" for i, kind in enumerate(kinds))
    return f"""
define i64 @{ENTRY_POINT}({parameters}) {{
  %result = alloca i64
  %error = alloca ptr
  store i64 0, ptr %result
  call i32 @{native_name}(ptr %result, ptr %error, {parameters})
  %value = load i64, ptr %result
  ret i64 %value
}}
"""
