"""A function of one token for each of a few tokens, written out by the compiler.

What belongs to each of n tokens is a tuple of n values. They stay in registers, and what the n calls have in
common is computed once. A function that takes such tuples is compiled anew for each n.
"""

from __future__ import annotations

from numba import types
from numba.extending import intrinsic

MOST_TOKENS = 4
"""Types of 256 weights take so many together, the others one less. Each number has code of its own."""


@intrinsic
def each(typingctx, function, shared, *values):
    """The tuple of function(shared, t, a[t], b[t], ...) for each token t; values are the tuples a, b, ..."""
    n = len(values[0])
    callee = typingctx.resolve_function_type(function, (shared, types.int64, *(v[0] for v in values)), {})
    result = types.UniTuple(callee.return_type, n)

    def codegen(context, builder, sig, args):
        _, shared, of_tokens = args
        shared = context.cast(builder, shared, sig.args[1], callee.args[0])
        call = context.get_function(function, callee)
        results = []
        for t in range(n):
            of_token = [builder.extract_value(of_tokens, (i, t)) for i in range(len(values))]
            results.append(call(builder, [shared, context.get_constant(types.int64, t), *of_token]))
        return context.make_tuple(builder, result, results)

    return result(function, shared, types.StarArgTuple.from_types(values)), codegen
