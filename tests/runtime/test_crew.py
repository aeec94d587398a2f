"""The crew's threads: their number changes nothing, they can be interrupted, and they go when told."""

import threading

import numpy as np
import pytest

LOAD = """if True:
    import os, pathlib, signal, sys, threading, time
    import numpy as np
    from gguf_moe.arch.model import read_model
    from gguf_moe.checkpoint import open_checkpoint
    from gguf_moe.errors import BusyError
    from gguf_moe.graph.task import Kind
    from gguf_moe.runtime.context import Context
    from gguf_moe.runtime.crew import kernels_of
    from gguf_moe_kernels.cpu.library import KernelLibrary

    checkpoint = open_checkpoint(sys.argv[1])
    arch, hparams, weights = read_model(checkpoint)
    library = KernelLibrary(pathlib.Path(sys.argv[2]))

    def start(n_batch, n_threads=2):
        context = Context(arch, hparams, weights, n_ctx=24576, n_batch=n_batch, kv_kind=Kind.F16)
        rows = context.rows(n_threads)
        library.prepare(kernels_of(rows))
        context.start(rows, library, n_threads)
        return context
"""


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("gguf-moe")]


def test_close_joins_the_threads_and_may_come_twice(crew_context, dense_file):
    before = len(threads())
    with crew_context(dense_file, 3) as context:
        assert len(threads()) == before + 2
        context.close()
        assert len(threads()) == before
        context.close()


def test_a_parked_crew_wakes_up(crew_context, dense_file):
    with crew_context(dense_file, 3) as context:
        first = context.extend([1, 2], 1).copy()
        pause = threading.Event()
        for seconds in (0.0, 0.02, 0.3):
            pause.wait(seconds)
            context.truncate(0)
            np.testing.assert_array_equal(context.extend([1, 2], 1), first)


@pytest.mark.parametrize("n_threads", [1, 2, 8])
def test_ctrl_c_ends_a_long_step_and_the_crew_works_again(n_threads, dense_file, kernel_cache, run_python):
    script = """
    context, short = start(24576, int(sys.argv[3])), [1, 2, 3]
    expected = context.extend(short, 1).copy()
    context.truncate(0)
    sent = []

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    def interrupt():
        time.sleep(0.5)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        context.extend([5] * 24000, 1)
        sys.exit("the step was over before it was interrupted")
    except KeyboardInterrupt:
        took = time.monotonic() - sent[0]
    assert took < 1.0, f"it took {took:.2f} s"
    assert context.tokens == []
    assert (context.extend(short, 1) == expected).all()
    """
    run_python(LOAD + script, dense_file, kernel_cache, n_threads)


def test_a_forked_child_is_refused(dense_file, kernel_cache, run_python):
    script = """
    context = start(8)
    context.extend([1, 2], 1)
    child = os.fork()
    if child == 0:
        try:
            context.extend([3], 1)
        except BusyError as e:
            os._exit(0 if "fork" in str(e) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    context.extend([3], 1)
    """
    run_python(LOAD + script, dense_file, kernel_cache)


def test_the_interpreter_ends_with_a_live_crew(dense_file, kernel_cache, run_python):
    script = """
    context = start(8, 3)
    context.extend([1, 2], 1)
    print("done")
    """
    assert run_python(LOAD + script, dense_file, kernel_cache, timeout=30) == "done\n"


def test_a_context_that_is_dropped_takes_its_threads_along(dense_file, kernel_cache, run_python):
    script = """
    import gc
    context = start(8, 3)
    context.extend([1, 2], 1)
    del context
    gc.collect()
    assert threading.active_count() == 1
    """
    run_python(LOAD + script, dense_file, kernel_cache)
