"""Many threads at once, the GIL, forks, the environment, and memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gce

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="this system tells nothing in /proc"
)


def run_script(script: str, seconds: float = 120, **environment: str) -> str:
    """Output of a Python script, whose whole family of processes is killed if it takes too long."""
    names = ("GCE_NUM_THREADS", "OMP_NUM_THREADS")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    process = subprocess.Popen(
        # Python warns of forks of threads; that is what these tests are about.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script)],
        env=clean | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        pytest.fail(f"no end after {seconds} s\n{output}\n{errors}")
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # children that were left behind
    assert (process.returncode, errors) == (0, "")
    return output


# --- Python threads -------------------------------------------------------------------------------


def problem(seed: int, rows: int, classes: int, dtype: str) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "logits": rng.standard_normal((rows, classes), np.float32).astype(dtype),
        "targets": rng.integers(0, classes, rows),
        "gamma": rng.random(rows),
    }


def bits(results: Any) -> list[bytes]:
    return [result.tobytes() for result in results]


# On both sides of 131,072 logits, from which on a call uses the pool.
SIZES = [(1, 1), (3, 7), (64, 33), (1000, 130), (1100, 130), (3, 60_000), (5000, 40)]


def test_eight_python_threads_at_once(isa):
    problems = [
        problem(seed, *size, dtype)
        for seed, (size, dtype) in enumerate(
            (size, dtype) for size in SIZES for dtype in ("float16", "float32", "float64")
        )
    ]
    want = [bits(gce.loss_and_grad(**given, num_threads=1)) for given in problems]
    together = threading.Barrier(8, timeout=60)

    def work(thread: int) -> int:
        order = np.random.default_rng(thread).permutation(len(problems))
        out = {i: np.empty_like(problems[i]["logits"]) for i in order}
        together.wait()
        wrong = 0
        for _ in range(3):
            for i in order:
                threads = (None, 1, 2, 8)[(thread + i) % 4]
                found = gce.loss_and_grad(**problems[i], out=out[i], num_threads=threads)
                wrong += bits(found) != want[i]
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [0] * 8


def test_errors_of_threads_are_their_own():
    # The core keeps its last message per thread.
    logits = np.zeros((4, 5), np.float32)
    together = threading.Barrier(8, timeout=60)

    def work(thread: int) -> None:
        together.wait()
        for i in range(200):
            found = 5 + 100 * thread + i
            with pytest.raises(IndexError, match=rf"^targets\[1\] = {found}, "):
                gce.loss(logits, [0, found, 0, 0], 0.5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_other_threads_run_during_a_call():
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("no GIL to be released")
    # Threads that do not give up the GIL by themselves keep it: with this interval nobody asks. So
    # if the main thread runs between "begun" and "ended", the call has released it.
    logits = np.zeros((2000, 10_000), np.float32)  # 20 ms and more on one thread
    targets = np.zeros(2000, np.int64)
    out = np.zeros_like(logits)

    def seen_during(call: Any) -> bool:
        events: list[str] = []

        def work() -> None:
            events.append("begun")
            call()
            events.append("ended")

        thread = threading.Thread(target=work)
        thread.start()
        while not events:
            time.sleep(0)
        seen = tuple(events)
        thread.join()
        return seen == ("begun",)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    try:
        # The main thread may still be too late for one call; not for twenty.
        assert not any(seen_during(lambda: sum(range(1000))) for _ in range(20))
        for call in (
            lambda: gce.loss(logits, targets, 0.5, num_threads=1),
            lambda: gce.loss_and_grad(logits, targets, 0.5, out=out, num_threads=2),
            lambda: gce.row_stats(logits, targets, num_threads=1),
        ):
            assert any(seen_during(call) for _ in range(20))
    finally:
        sys.setswitchinterval(before)


# --- how many threads -----------------------------------------------------------------------------


@needs_proc
def test_large_calls_use_the_pool_and_small_ones_do_not():
    output = run_script(
        """
        import os, numpy as np, gce
        threads = lambda: len(os.listdir("/proc/self/task"))
        def call(rows, classes, **options):
            gce.loss(np.zeros((rows, classes), np.float32), np.zeros(rows, int), 0.5, **options)
            return threads()
        before = threads()
        print(call(1000, 131) - before)  # 131,000 logits
        print(call(1000, 132, num_threads=1) - before)
        print(call(4000, 132) - before)
        print(call(4000, 132, num_threads=5) - before)
        print(call(4000, 132, num_threads=2) - before)
        """,
        GCE_NUM_THREADS="3",
    )
    assert output.split() == ["0", "0", "2", "4", "4"]


@needs_proc
def test_any_count_of_threads_is_bounded_by_the_work():
    output = run_script(
        """
        import os, numpy as np, gce
        logits, targets = np.zeros((2, 100_000), np.float32), np.zeros(2, int)
        print(gce.loss(logits, targets, 1.0, num_threads=2**31 - 1))
        print(gce.loss(logits, targets, 1.0, num_threads=2**62))
        print(len(os.listdir("/proc/self/task")) < 100)
        """
    )
    assert output.split() == ["0.99999", "0.99999", "True"]


ASK = "import gce; print(gce.get_num_threads())"


@pytest.mark.parametrize("count", ["1", "7", "1000"])
def test_the_count_from_the_environment(count):
    assert run_script(ASK, GCE_NUM_THREADS=count).strip() == count
    assert run_script(ASK, OMP_NUM_THREADS=count).strip() == count


def test_whose_count_goes_before():
    assert run_script(ASK, GCE_NUM_THREADS="3", OMP_NUM_THREADS="5").strip() == "3"
    assert run_script(ASK, GCE_NUM_THREADS="", OMP_NUM_THREADS="5").strip() == "5"
    assert run_script(ASK, OMP_NUM_THREADS="6,4").strip() == "6"  # OpenMP's list, by nesting level
    chosen = "import gce; gce.set_num_threads(4); print(gce.get_num_threads())"
    assert run_script(chosen, GCE_NUM_THREADS="3").strip() == "4"
    # OpenMP ignores what it cannot read, and so do we; ours is an error.
    assert int(run_script(ASK, OMP_NUM_THREADS="many")) >= 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity here")
def test_the_count_is_that_of_the_cpus_of_the_process():
    script = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); " + ASK
    assert run_script(script).strip() == "1"
    assert run_script(ASK).strip() == str(len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("text", ["0", "-2", "many", "2.5", "4,2", "3 ", "99999999999999999999"])
def test_a_bad_count_in_the_environment(text):
    script = """
        import numpy as np, gce
        def error_of(call):
            try:
                call()
            except ValueError as error:
                return str(error)
        large, targets = np.zeros((2000, 100), np.float32), np.zeros(2000, int)
        out = np.full_like(large, 7)
        print(error_of(gce.get_num_threads))
        print(error_of(lambda: gce.loss_and_grad(large, targets, 0.5, out=out)))
        print((out == 7).all())
        print(error_of(lambda: gce.loss(large, targets, 0.5, num_threads=2)))
        gce.set_num_threads(2)
        print(gce.get_num_threads())
    """
    message = f"GCE_NUM_THREADS = {text}, expected an integer >= 1"
    output = run_script(script, GCE_NUM_THREADS=text).splitlines()
    assert output == [message, message, "True", "None", "2"]


def test_set_num_threads():
    before = gce.get_num_threads()
    try:
        for count in (1, 2, 7, 2**31 - 1):
            gce.set_num_threads(count)
            assert gce.get_num_threads() == count
    finally:
        gce.set_num_threads(before)


# --- CPUs -----------------------------------------------------------------------------------------


@needs_proc
def test_threads_of_the_pool_keep_their_cpus():
    # A caller keeps threads that sleep off its own CPU: only until they wake.
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not tell a thread's CPUs")
    output = run_script(
        """
        import os, time
        import numpy as np
        import gce

        allowed = os.sched_getaffinity(0)
        logits = np.random.default_rng(0).standard_normal((2000, 300), np.float32)
        targets = np.arange(2000) % 300
        want = gce.loss(logits, targets, 0.3, num_threads=1)
        for rest in [0.0, 0.001, 0.02] * 5:  # the pool's threads spin, fall asleep, are asleep
            assert gce.loss(logits, targets, 0.3, num_threads=2) == want
            assert gce.loss(logits, targets, 0.3, num_threads=5) == want
            time.sleep(rest)
        threads = [int(name) for name in os.listdir("/proc/self/task")]
        assert len(threads) >= 5, threads
        def all_have(cpus):
            for _ in range(1000):  # those that were woken last may not have run yet
                if all(os.sched_getaffinity(thread) == cpus for thread in threads):
                    return True
                time.sleep(0.01)
        assert all_have(allowed)
        one = {min(allowed)}
        for thread in threads:
            os.sched_setaffinity(thread, one)
        assert gce.loss(logits, targets, 0.3, num_threads=5) == want
        assert all_have(one)
        print("as they were")
        """,
        OPENBLAS_NUM_THREADS="1",
    )
    assert output == "as they were\n"


# --- forks ----------------------------------------------------------------------------------------

FORK = """
    import os, sys, threading, numpy as np, gce
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3000, 100), np.float32)
    targets = rng.integers(0, 100, 3000)
    def results(threads):
        loss, grad = gce.loss_and_grad(logits, targets, 0.3, num_threads=threads)
        return loss.tobytes() + grad.tobytes()
    want = results(1)
    def in_child(work):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if work() else 2
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    def calls():
        return all(results(threads) == want for threads in (4, 1, 8, 4))
    def forks():
        return calls() and in_child(calls) == 0
"""


@needs_fork
def test_a_child_calls_after_its_parent_used_threads():
    # GNU OpenMP waits for ever there.
    output = run_script(
        FORK
        + """
    assert results(4) == want
    print([in_child(calls) for _ in range(5)], results(4) == want)
    print(in_child(forks))  # and a child of the child
    """
    )
    assert output.splitlines() == ["[0, 0, 0, 0, 0] True", "0"]


@needs_fork
def test_a_child_that_forks_before_any_call():
    assert run_script(FORK + "\n    print(in_child(calls), calls())").strip() == "0 True"


@needs_fork
def test_a_child_that_is_forked_during_a_call_of_another_thread():
    output = run_script(
        FORK
        + """
    stop = threading.Event()
    busy = threading.Event()
    def keep_calling():
        while not stop.is_set():
            results(4)
            busy.set()
    threads = [threading.Thread(target=keep_calling) for _ in range(2)]
    for thread in threads:
        thread.start()
    busy.wait()
    codes = [in_child(calls) for _ in range(20)]
    stop.set()
    for thread in threads:
        thread.join()
    print(set(codes), calls())
    """
    )
    assert output.strip() == "{0} True"


@needs_fork
def test_a_pool_of_forked_processes():
    output = run_script(
        """
        import multiprocessing, numpy as np, gce
        logits = np.random.default_rng(0).standard_normal((3000, 100), np.float32)
        targets = np.arange(3000) % 100
        def work(threads):
            return gce.loss_and_grad(logits, targets, 0.3, num_threads=threads)[1].tobytes()
        want = work(4)
        with multiprocessing.get_context("fork").Pool(3) as pool:
            print(set(pool.map(work, [1, 2, 4, 8] * 3)) == {want})
        """
    )
    assert output.strip() == "True"


def test_the_process_ends_while_the_pool_exists():
    # Threads that nobody joins must not keep the interpreter, nor crash it on its way out.
    for ending in ("", "raise SystemExit(0)", "import os; os._exit(0)"):
        run_script(
            f"""
            import numpy as np, gce
            gce.loss(np.zeros((2000, 100), np.float32), np.zeros(2000, int), 0.5, num_threads=4)
            {ending}
            """
        )


def test_the_process_ends_during_a_call():
    run_script(
        """
        import threading, numpy as np, gce
        logits, targets = np.zeros((2000, 10_000), np.float32), np.zeros(2000, int)
        begun = threading.Event()
        def work():
            begun.set()
            while True:
                gce.loss(logits, targets, 0.5, num_threads=2)
        threading.Thread(target=work, daemon=True).start()
        begun.wait()
        gce.loss(logits, targets, 0.5, num_threads=2)
        """
    )


# --- memory ---------------------------------------------------------------------------------------

MEGABYTE = 2**20

MEMORY = """
    import numpy as np, gce
    def peak():  # getrusage's would start from that of the process which started this one
        status = open("/proc/self/status").read()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    def growth(function, **options):
        before = peak()
        result = function(logits, targets, **options, axis={axis}, num_threads=2)
        return peak() - before
    gce.loss_and_grad(np.ones((1200, 130)), [0] * 1200, 0.5, num_threads=2)  # the pool, once
    rows, classes = {shape}
    targets = np.zeros(rows, np.int64)
    logits = np.ones({shape} if {axis} else (classes, rows), "{dtype}"){view}
    print(growth(gce.loss, gamma=0.5))
    print(growth(gce.row_stats))
    print(growth(gce.loss_and_grad, gamma=0.5, out=logits))
    out = np.ones_like(logits)
    print(growth(gce.loss_and_grad, gamma=0.5, out=out))
    print(growth(gce.loss_and_grad, gamma=0.5))
"""


@needs_proc
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("view", ["", "[::-1, ::-1]"], ids=["contiguous", "backwards"])
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("shape", [(4000, 4000), (16, 1_000_000)], ids=str)
def test_no_call_needs_more_memory_than_its_result(shape, axis, view, dtype):
    row = np.dtype(dtype).itemsize * shape[1]
    *others, new = map(
        int, run_script(MEMORY.format(shape=shape, axis=axis, dtype=dtype, view=view)).split()
    )
    # Statistics of rows, stacks, huge pages begun; for each of two threads one row's exponentials,
    # as float or double; and where classes are not beside each other, one row of logits. One copy
    # would be 16 rows or more, of at least 2 MB each or 30 MB together.
    kept = max(row, 4 * shape[1])
    allowed = 8 * MEGABYTE + 2 * kept + (2 * row if view else 0)
    assert max(others) <= allowed
    size = row * shape[0]
    assert new <= size + allowed
    assert new > 0.9 * size  # or the measurement measures nothing


# Arguments are the caller's to change, even while a call runs: results are then anything, but
# nothing is read or written out of bounds.

CHANGED_MEANWHILE = """
import threading
import numpy as np
import gce

logits = np.zeros((200_000, 40), "f4")
targets = np.zeros(200_000, np.int64)
done = threading.Event()

def change():
    while not done.is_set():
        targets[:] = 2**40
        targets[:] = 0

thread = threading.Thread(target=change)
thread.start()
for _ in range(40):
    try:
        gce.loss_and_grad(logits, targets, 0.5)
    except IndexError:
        pass
done.set()
thread.join()
"""


def test_targets_that_change_during_a_call():
    done = subprocess.run([sys.executable, "-c", CHANGED_MEANWHILE], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_array_changed_by_a_later_argument():
    logits = np.zeros((400, 30), np.float32)

    class Reshaping:
        def __array__(self, dtype=None, copy=None):
            logits.shape = (12_000,)
            return np.array(0.1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy deprecates setting the shape
        with pytest.raises(ValueError, match=r"^targets has shape \(400,\), expected \(\)"):
            gce.loss_and_grad(logits, np.zeros(400, int), Reshaping())
