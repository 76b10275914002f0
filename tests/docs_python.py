"""The ``python`` of the blocks in the docs: starts in no time, and makes commands tiny.

Each command would import torch and Lightning anew, some ten seconds of a core. Here a server
imports them once; the file that stands for ``python`` hands it its words, folder, environment and
standard streams, and the server forks a process that runs them.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import re
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

# Other people's packages alone: ours come from the folder in which a block runs. None that starts a
# thread, as onnxruntime does: a fork leaves it behind, and the process waits for it at its end.
IMPORTED = "torch torchvision pytorch_lightning albumentations cv2 pandas scipy.stats torchmetrics"
IMPORTED += " matplotlib.pyplot PIL.Image torch.onnx pydicom onnxscript sklearn.metrics"
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["DOCS_PYTHON"])
    words = [os.path.abspath(sys.argv[0]), os.getcwd(), dict(os.environ), sys.argv[1:]]
    socket.send_fds(server, [b"-"], [0, 1, 2])
    server.sendall(json.dumps(words).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(9) or 1))
"""


def start(address: Path, tiny: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the server at a socket; ``tiny`` maps patterns of command lines to words added."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words, pipe = [sys.executable, __file__, str(address), json.dumps(tiny)], subprocess.PIPE
    server = subprocess.Popen(words, env=environment, cwd=address.parent, stdin=pipe, stdout=pipe)
    assert server.stdout is not None
    assert server.stdout.readline(), "the server of the docs' commands did not start, see above"
    return server


def make_tiny(words: list[str], tiny: dict[str, str]) -> list[str]:
    """The words of a command with what makes it tiny; of ``key=value`` only keys that it lacks."""
    line = " ".join(words)
    added = [shlex.split(more) for begin, more in tiny.items() if re.match(begin, line)]
    keys = {word.partition("=")[0] for word in words}
    return words + [word for more in added for word in more if word.partition("=")[0] not in keys]


def serve(address: str) -> tuple[socket.socket, str, list[str]]:
    """Wait for commands; return, in a process of its own, the client, its path and its words."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(16)
        print("ready", flush=True)
        while True:
            if sys.stdin in select.select([server, sys.stdin], [], [])[0]:
                sys.exit()  # the tests have ended
            client, _ = server.accept()
            if not os.fork():
                break
            client.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(client, 1, 3)
    with client.makefile("rb") as file:
        path, folder, environment, words = json.load(file)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return client, path, words


def execute(client: str, words: list[str]) -> None:
    """Run what ``python WORDS`` would run."""
    if "LOCAL_RANK" in os.environ or words[:2] == ["-m", "pytest"] or words[0] == "-c":
        # Lightning looks for its rank, and pytest for open files, from the start of a process on.
        sys.exit(subprocess.run([sys.executable, *words]).returncode)
    sys.executable = client  # what a command starts is tiny, too
    first, *rest = words
    if first == "-m" and rest[0] == "venv":
        # What a Makefile wants of it.
        python = Path(rest[1]) / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(Path(client).resolve())
    elif first == "-m" and rest[0] != "pip":  # nothing is fetched
        sys.path[0] = os.getcwd()
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first != "-m":
        sys.path[0] = str(Path(first).resolve().parent)
        sys.argv = words
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for module in IMPORTED.split():
        importlib.import_module(module)
    gc.freeze()  # else each process copies all that is imported as soon as it counts what is in use
    connection, path, words = serve(sys.argv[1])
    status: int | str | None = None
    try:
        execute(path, make_tiny(words, json.loads(sys.argv[2])))
    except SystemExit as asked:
        status = asked.code
    except BaseException:
        status = traceback.format_exc()
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(status or 0).encode())
    os._exit(0)  # at once: taking all modules down one by one takes a second
