"""On a host's ``PYTHONPATH``: what code of this repository runs, connects to or looks up, into a file.

Python imports it before anything else. ``CONTROLKIT_WATCH`` names the file, ``CONTROLKIT_WATCH_ROOT`` the
repository.
"""

import os
import sys

_FILE, _ROOT = os.environ["CONTROLKIT_WATCH"], os.environ["CONTROLKIT_WATCH_ROOT"]
_EVENTS = {
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "urllib.Request",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
}


def _note(event: str, args: object) -> None:
    if event not in _EVENTS:
        return
    frame = sys._getframe(1)
    while frame is not None:
        if os.path.realpath(frame.f_code.co_filename).startswith(_ROOT + os.sep):
            with open(_FILE, "a", encoding="utf-8") as file:
                file.write(f"{event} {args} from {frame.f_code.co_filename}:{frame.f_lineno}\n")
            return
        frame = frame.f_back


open(_FILE, "a", encoding="utf-8").close()  # there: it watches
sys.addaudithook(_note)
