"""Signals during a call, the interpreter's end, and other interpreters."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys

import pytest

from test_concurrency import needs_fork, run_script

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no POSIX signals here")

START = """
    import os, signal, sys, threading, time
    import numpy as np
    import gce
    # Which a shell's background processes ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3000, 700), np.float32)
    targets = rng.integers(0, 700, 3000)
    out = np.empty_like(logits)
    # By a default, as at the interpreter's end modules may be empty already.
    def results(threads=4, call=gce.loss_and_grad, given=(logits, targets, 0.3), out=out):
        loss, grad = call(*given, out=out, num_threads=threads)
        return loss.tobytes() + grad.tobytes()
    want = results(1)
"""


def test_an_interrupt_ends_the_program_after_the_call():
    # As with any extension: Python's handler runs when the call has returned.
    output = run_script(
        START
        + """
    large = np.broadcast_to(logits, (40, 3000, 700))
    many = np.broadcast_to(targets, (40, 3000))
    def interrupt(begun):
        begun.wait()
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)
    for _ in range(5):
        begun = threading.Event()
        thread = threading.Thread(target=interrupt, args=(begun,))
        thread.start()  # which an interrupt may not interrupt
        try:
            begun.set()
            while True:
                gce.loss(large, many, 0.3, num_threads=4)
        except KeyboardInterrupt:
            print("interrupted")
        thread.join()
        assert results() == want
    """
    )
    assert output.split() == ["interrupted"] * 5


@pytest.mark.parametrize(
    ("timer", "name"), [("ITIMER_REAL", "SIGALRM"), ("ITIMER_PROF", "SIGPROF")]
)
def test_a_storm_of_signals(timer, name):
    # They interrupt what the caller and the pool's threads wait for; and a handler may call, too.
    output = run_script(
        START
        + f"""
    seen, is_in_handler = 0, False
    def handler(*_):
        global seen, is_in_handler
        seen += 1
        if is_in_handler:  # on a slow machine there would be no end to it
            return
        is_in_handler = True
        gce.loss(logits[:200], targets[:200], 0.5, num_threads=2)
        is_in_handler = False
    signal.signal(signal.{name}, handler)
    signal.setitimer(signal.{timer}, 0.0005, 0.0005)
    end = time.monotonic() + 2
    while seen < 200 and time.monotonic() < 60 + end:
        assert all(results(threads) == want for threads in (4, 1, 3))
    signal.setitimer(signal.{timer}, 0)
    print(seen >= 200)
    """
    )
    assert output == "True\n"


def test_threads_of_the_pool_take_no_signals():
    # A handler is to run on a thread of the program: then it ends what that waits for.
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("this system tells nothing in /proc")
    output = run_script(
        """
        import os, signal, time
        import numpy as np, gce
        tasks = lambda: set(os.listdir("/proc/self/task"))
        before = tasks()
        gce.loss(np.zeros((4000, 700), np.float32), np.zeros(4000, int), 0.5, num_threads=4)
        own = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGPROF)  # a profiler's
        def blocked_in(task):
            status = open(f"/proc/self/task/{task}/status").read()
            return int(status.partition("SigBlk:")[2].split()[0], 16)
        for task in tasks() - before:
            for _ in range(1000):  # glibc blocks all of them until the thread has begun
                blocked = blocked_in(task)
                is_blocked = lambda number: bool(blocked >> (number - 1) & 1)
                if not any(map(is_blocked, own)):
                    break
                time.sleep(0.01)
            print(is_blocked(signal.SIGINT), is_blocked(signal.SIGTERM), is_blocked(signal.SIGALRM),
                  any(map(is_blocked, own)))
        print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        """
    )
    assert output.splitlines() == ["True True True False"] * 3 + ["set()"]


@needs_fork
def test_forks_in_a_storm_of_signals():
    output = run_script(
        START
        + """
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    codes = []
    for _ in range(10):
        child = os.fork()
        if child == 0:
            os._exit(0 if results() == want else 1)
        assert results() == want
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(codes)
    """
    )
    assert output == f"{[0] * 10}\n"


# --- the end --------------------------------------------------------------------------------------


def test_daemon_threads_at_the_end():
    # Until Python 3.13 they are ended where they ask for the GIL: inside a call.
    script = """
        import sys, threading, time
        import numpy as np
        import gce
        sys.setswitchinterval(1e-5)
        def work():
            while True:
                gce.loss_and_grad(np.zeros((3, 50), np.float32), np.zeros(3, int), [0.5] * 3)
                gce.row_stats(np.zeros((300, 500), np.float32), np.zeros(300, int), num_threads=2)
        for _ in range(6):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.02)
    """
    for _ in range(8):
        run_script(script)


# Where a call is when the interpreter ends: in its first argument's last breath, in its second.
@pytest.mark.parametrize("place", ["__del__", "__array__"])
def test_a_daemon_thread_that_is_in_python_code_of_a_call_at_the_end(place):
    wait = "begun.set(); os.read(reading, 1)"  # without the GIL
    output = run_script(f"""
        import os, sys, threading, time
        import numpy as np
        import gce
        class Given:
            def __init__(self, array):
                self.array = array
            def __array__(self, dtype=None, copy=None):
                array, self.array = self.array, None
                return array
        class Slow(Given):
            def __array__(self, dtype=None, copy=None):
                {wait if place == "__array__" else "pass"}
                return super().__array__()
        class Logits(np.ndarray):
            def __del__(self):
                {wait if place == "__del__" else "pass"}
        class Ending:
            closed = False
            def flush(self):
                if sys.is_finalizing():
                    os.write(writing, b"go on")
                    time.sleep(0.5)
                    os.write(1, b"the end")
        reading, writing = os.pipe()
        begun = threading.Event()
        def work():
            logits = Given(np.zeros((3, 5)).view(Logits))
            gce.loss(logits, Slow(np.zeros(3, int)), 0.5)
            os.write(1, b"not ended")
        threading.Thread(target=work, daemon=True).start()
        begun.wait()
        sys.stdout = Ending()
        """)
    assert output == "the end"


def test_calls_at_exit():
    output = run_script(
        START
        + """
    import atexit
    class Late:
        def __del__(self, results=results, want=want):
            print(results() == want)
    late = Late()
    atexit.register(lambda: print(results() == want))
    thread = threading.Thread(target=lambda: (time.sleep(0.05), print(results() == want)))
    thread.start()
    """
    )
    assert output.splitlines() == ["True", "True", "True"]


# --- other interpreters ---------------------------------------------------------------------------

CODE = """
import sys, warnings
warnings.simplefilter("ignore")  # numpy's own, that it does not support them
sys.path[:] = {path}
try:
    import gce
except ImportError as error:
    print("ImportError:", error)
"""

SCRIPT = """
    {module}
    import numpy as np
    import gce
    want = gce.loss(np.eye(3), [0, 1, 2], 0.3)
    for _ in range(3):
        other = interpreters.{create}
        interpreters.{run}(other, {code!r})
        interpreters.destroy(other)
        # With keywords, which are interned objects of this interpreter.
        assert gce.loss(np.eye(3), [0, 1, 2], gamma=0.3, reduction="mean") == want
"""

# By whose GIL there is: the main interpreter's, or their own.
INTERPRETERS = {
    "3.10 shared": ("_xxsubinterpreters", "create(isolated=False)", "run_string"),
    "3.10": ("_xxsubinterpreters", "create()", "run_string"),
    "3.13 shared": ("_interpreters", "create('legacy')", "exec"),
    "3.13": ("_interpreters", "create()", "exec"),
}


@pytest.mark.parametrize("kind", INTERPRETERS)
def test_sub_interpreters_are_refused(kind):
    module, create, run = INTERPRETERS[kind]
    if importlib.util.find_spec(module) is None:
        pytest.skip("another Python's module")
    output = run_script(
        SCRIPT.format(
            module=f"import {module} as interpreters",
            create=create,
            run=run,
            code=CODE.format(path=sys.path),
        )
    )
    refused = (
        "ImportError: gce does not support sub-interpreters: import it in the main one",
        # From Python 3.12 on, where it is asked before the module.
        "ImportError: module gce._native does not support loading in subinterpreters",
    )
    lines = output.splitlines()
    assert len(lines) == 3
    assert set(lines) <= set(refused)
