"""Numba as a front end: Python functions in, LLVM code as Numba writes it out, not yet optimized.

Left to itself Numba optimizes every function when it is compiled, and again inside each of its callers, and
makes wrappers to call each from Python. A kernel is dozens of small functions that all end up inside one, so
that takes several times as long. Here a function is typed and translated once, and kernels are linked at the
end.

Numba's own compiler in the same process is left alone: functions are compiled in contexts of ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from numba.core import codegen, compiler, cpu, registry, typed_passes, typing, untyped_passes
from numba.core import types as numba_types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime import rtsys

NOT_NEEDED = (
    untyped_passes.InlineClosureLikes,
    untyped_passes.MakeFunctionToJitFunction,
    typed_passes.InlineOverloads,
    typed_passes.NopythonRewrites,
)
"""Numba's passes for closures, inlining and array expressions, of which kernels have none."""


class _Compiler(compiler.CompilerBase):
    def define_pipelines(self) -> list[Any]:
        passes = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [each for each in passes.passes if each[0] not in NOT_NEEDED]
        passes.finalize()
        return [passes]


class _Library(codegen.CPUCodeLibrary):
    """The code of one function, and the libraries of what it calls."""

    def _optimize_functions(self, ll_module: llvm.ModuleRef) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        self._finalized = True

    def linked(self) -> llvm.ModuleRef:
        """The code of this function and of all that it calls."""
        module = self._final_module.clone()
        waiting, seen = [self], {self}
        while waiting:
            for library in waiting.pop()._linking_libraries:
                if library in seen or library is rtsys.library:
                    continue
                seen.add(library)
                if isinstance(library, _Library):
                    waiting.append(library)
                    module.link_in(library._final_module, preserve=True)
                else:  # Numba's own, which it has linked and optimized already
                    module.link_in(library._get_module_for_linking(), preserve=True)
        return module


class _Codegen(codegen.JITCPUCodegen):
    _library_class: Any = _Library


class _TypingContext(typing.Context):
    """Types calls of njit functions by compiling them here instead of by their own dispatcher."""

    compile: Callable[..., Any]

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        if not isinstance(func, numba_types.Dispatcher):
            return super().resolve_function_type(func, args, kws)
        pysig, args = func.dispatcher._compiler.fold_argument_types(args, kws)
        result = self.compile(func.dispatcher.py_func, tuple(numba_types.unliteral(a) for a in args))
        return result.signature.replace(pysig=pysig)


class _TargetContext(cpu.CPUContext):
    """Code for the same CPU as Numba's, made by `_Codegen`."""

    def init(self) -> None:
        super().init()
        self._internal_codegen = _Codegen("gguf_moe")

    def get_function(self, fn: Any, sig: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(fn, numba_types.Dispatcher):
            fn = (fn.dispatcher.py_func, sig.args)
        elif isinstance(fn, numba_types.Function):
            # An @overload of Numba's own (carray) has been compiled by Numba when the call was typed.
            key, theirs = fn.get_impl_key(sig), registry.cpu_target.target_context._defns
            if key not in self._defns and key in theirs:
                self._defns[key] = theirs[key]
        return super().get_function(fn, sig, *args, **kwargs)


class Frontend:
    """Compiles functions, each at most once for the same types of arguments."""

    def __init__(self) -> None:
        # Numba's runtime belongs to the first context that needs it: to Numba's, not to ours.
        rtsys.initialize(registry.cpu_target.target_context)
        self._results: dict[Any, Any] = {}
        self._typing = _TypingContext()
        self._typing.compile = self._compile
        self._target = _TargetContext(self._typing)

    @global_compiler_lock
    def translate(self, function: Callable[..., Any], signature: Any) -> tuple[llvm.ModuleRef, str]:
        """A module with a function and all that it calls, and the function's name in it."""
        result = self._compile(function, signature.args, signature.return_type)
        return result.library.linked(), result.fndesc.llvm_func_name

    def _compile(self, function: Callable[..., Any], args: tuple[Any, ...], return_type: Any = None) -> Any:
        key = function, args
        if key not in self._results:
            flags: Any = compiler.Flags()
            flags.nrt = True
            flags.error_model = "numpy"
            flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
            result = compiler.compile_extra(
                self._typing, self._target, function, args, return_type, flags, {}, pipeline_class=_Compiler
            )
            self._target.insert_user_function(key, result.fndesc, [result.library])
            self._results[key] = result
        return self._results[key]


@functools.cache
def frontend() -> Frontend:
    """The process's front end: making one takes as long as compiling a kernel."""
    return Frontend()
