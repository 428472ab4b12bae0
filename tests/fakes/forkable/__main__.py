from __future__ import annotations

import json
import os
import signal
import sys


def main() -> int:
    picture = {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "parent": os.getppid(),
        "arguments": sys.argv[1:],
        "variable": os.environ.get("FORKABLE"),
        "home": os.environ.get("HOME"),
        "stdin": sys.stdin.read(),
    }
    print(json.dumps(picture), flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    match sys.argv[1]:
        case "wait":
            signal.pause()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise RuntimeError("as told")
    return int(sys.argv[1])


if __name__ == "__main__":
    sys.exit(main())
