"""`bertnli serve`."""

from __future__ import annotations

import signal
import socket
import sys
from types import SimpleNamespace

from bertnli.cli.loading import check_is_head, find_device, load_checkpoint, with_switches
from bertnli.data.extras import from_extra
from bertnli.integrations.service import make_app
from bertnli.model import Model


def serve(args: SimpleNamespace) -> None:
    with from_extra("serve", "bertnli serve"):
        import uvicorn

    head, tokenizer = load_checkpoint(args.model)
    head = check_is_head(head, args.model)
    model = Model(head, with_switches(args, tokenizer), args.precision).to(find_device(args.device))
    app = make_app(
        model, args.model, batch_size=args.batch_size, window=args.window / 1000, max_examples=args.max_examples,
        max_bytes=int(args.max_megabytes * 2**20),
    )  # fmt: skip
    config = uvicorn.Config(
        app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=args.grace
    )
    with _listen(args.host, args.port) as listener:
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again when the last request is answered
            signal.signal(number, lambda *_: None)
        print(f"bertnli: {args.model} on http://{args.host}:{args.port}; Ctrl-C ends it", file=sys.stderr, flush=True)
        uvicorn.Server(config).run([listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(
            f"cannot listen on port {port} of {host}: {error.strerror}; name another --port or --host"
        ) from None
