"""What `jaxgrpo serve CHECKPOINT` runs: a checkpoint as an engine with its weights, and the process that answers for it."""

import json
import os
import signal
import sys
import threading
import traceback

from jaxgrpo.errors import UserError
from jaxgrpo.train.inference import find, load_newest, make_engine
from jaxgrpo.train.sizes import config_sampling


class Lifeline:
    """Notices that the supervisor has let go: the standard input, on which nothing comes, has ended."""

    def __init__(self):
        self.on_end = lambda: os._exit(0)  # nothing is served yet
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        sys.stdin.buffer.read()
        self.on_end()


def main(options: dict, ready: int) -> None:
    """Serve until the supervisor lets go. options: checkpoint, overrides, host, port; ready: a pipe for one line."""
    lifeline = Lifeline()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a signal to the whole group means the supervisor, which lets go
    from jaxgrpo.rollout.server import Server, address

    served = find(options["checkpoint"], options["overrides"])
    engine = make_engine(served)
    print(f"loading {served.name}", flush=True)
    served, params = load_newest(served, engine, lambda text: print(text, flush=True))
    sizes = engine.settings
    print(f"compiling: {sizes.slots} slots, prompts of {sizes.max_prompt}, answers of {sizes.max_new} tokens", flush=True)
    sampling = config_sampling(served.config)
    server = Server(engine, params, host=options["host"], port=options["port"], sampling=sampling, seed=served.config.seed)
    lifeline.on_end = server.stop
    where = address(options["host"], options["port"])
    server.run(lambda: os.write(ready, f"serving {served.name} on {where}\n".encode()))


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]), int(sys.argv[2]))
        code = 0
    except UserError as error:
        print(f"jaxgrpo: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    except Exception:  # whatever it is, the process must end: the Driver's threads would keep it and the port
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # the Driver's threads would keep the interpreter alive
