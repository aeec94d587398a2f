"""The CPU that kernels are compiled for, and the key under which its code is cached."""

from __future__ import annotations

import functools
import hashlib
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm


@dataclass(frozen=True)
class Target:
    """A CPU as LLVM names it: `features` is LLVM's list, for example "+avx2,-avx512f"."""

    cpu: str
    features: str

    @staticmethod
    def host() -> Target:
        """This machine's CPU; what Numba aims at if Numba has been imported."""
        if "numba" in sys.modules:
            return Target.numba()
        llvm.initialize_native_target()
        return Target(llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())

    @staticmethod
    def numba() -> Target:
        """The CPU that Numba compiles for: the host unless the user told Numba otherwise."""
        from numba.core.registry import cpu_target

        _, cpu, features = cpu_target.target_context.codegen().magic_tuple()
        return Target(cpu, features)

    def has(self, feature: str) -> bool:
        """Whether the CPU has it, as LLVM names it: "avx512vbmi"."""
        return f"+{feature}" in self.features.split(",")

    @property
    def is_zen(self) -> bool:
        """One of AMD's Zen cores."""
        return self.cpu.startswith("znver")

    def machine(self) -> llvm.TargetMachine:
        """An LLVM code generator for this CPU."""
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        triple = llvm.Target.from_triple(llvm.get_process_triple())
        return triple.create_target_machine(cpu=self.cpu, features=self.features, opt=3, jit=True)

    @property
    def cache_key(self) -> str:
        """Changes with the CPU, the compiler and any kernel source."""
        facts = (self.cpu, self.features, llvm.get_process_triple(), _compiler_and_sources())
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


@functools.cache
def _compiler_and_sources() -> str:
    digest = hashlib.sha256(f"{version('numba')} {version('llvmlite')}".encode())
    root = Path(__file__).resolve().parent.parent
    for path in sorted([*root.glob("*.py"), *root.glob("cpu/*.py")]):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
