"""`tonnage agent`: read → keep → send, until told to stop.

The main thread reads every few seconds and keeps what it read; a second one sends what is kept, so that a server that
is away or slow never delays a reading.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from app import logs
from app.agent import identity
from app.agent.client import Client, SendError
from app.agent.delivery import Delivery
from app.agent.demo import DemoSource
from app.agent.options import OptionError, Options, parse
from app.agent.outbox import Outbox, OutboxUnusable
from app.agent.reading import NodeReading, Source
from app.telemetry import NodeReport, to_json

logger = logging.getLogger("app.agent")

_LAST_REQUEST_SECONDS = 1.5  # how long a request under way may still take when the agent is to end


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent with the arguments `argv` (None: the process's own). Returns the exit status, see `--help`."""
    try:
        options = parse(argv, os.environ)
        logs.configure(options.log_level)
        for warning in options.warnings:
            logger.warning(warning)
        reporter = Reporter(options, _source(options))
        return _print_reports(reporter, options) if options.print_only else _report(reporter, options)
    except (OptionError, OutboxUnusable) as error:
        sys.stderr.write(f"tonnage agent: {error}\n")
        return 2


class Reporter:
    """Makes reports out of readings, and says in the log when the node's health changes."""

    def __init__(self, options: Options, source: Source) -> None:
        self._node = options.node
        self._source = source
        self._boot_id = identity.boot_id()
        self._sequence = identity.Sequence()
        self._health: dict[str, str] = {}

    def report(self) -> NodeReport:
        """What the node's GPUs are like now."""
        sampled_at = datetime.now(UTC)
        reading = self._source.read()
        self._log_health(reading)
        try:
            return self._build(sampled_at, reading)
        except ValueError as error:  # such as one UUID on two cards: the driver's fault, not a reason to end
            reading = replace(reading, gpus=(), error=f"the driver gives an impossible reading: {error}")
            return self._build(sampled_at, reading)

    def close(self) -> None:
        """Let go of the driver."""
        self._source.close()

    def _build(self, sampled_at: datetime, reading: NodeReading) -> NodeReport:
        return NodeReport(
            node=replace(self._node, driver_version=reading.driver_version, cuda_version=reading.cuda_version),
            boot_id=self._boot_id,
            sequence=self._sequence.next(),
            sampled_at=sampled_at,
            gpus=reading.gpus,
            error=reading.error,
        )

    def _log_health(self, reading: NodeReading) -> None:
        health = {f"GPU {gpu.index}": gpu.error for gpu in reading.gpus if gpu.error is not None}
        if reading.error is not None:
            health["driver"] = reading.error
        for part in self._health.keys() | health.keys():
            if part not in health:
                logger.info("well again", extra={"part": part})
            elif self._health.get(part) != health[part]:
                logger.warning("not well", extra={"part": part, "reason": health[part]})
        self._health = health


def _source(options: Options) -> Source:
    if options.demo_gpus is not None:
        return DemoSource(options.node.name, options.demo_gpus)
    try:
        from app.agent.nvml import NvmlSource  # noqa: PLC0415 - the demonstration runs without NVML's bindings
    except ModuleNotFoundError as error:
        raise OptionError(f"{error.name} is not installed: pip install 'tonnage[agent]', or use --demo") from error
    return NvmlSource(processes=options.processes)


def _report(reporter: Reporter, options: Options) -> int:
    outbox = Outbox(options.state_dir, max_reports=options.outbox_max_reports, max_bytes=options.outbox_max_bytes)
    client = Client(options.server, options.token)
    delivery = Delivery(outbox, client)
    try:
        if options.once:
            return _report_once(reporter, outbox, delivery)
        return _report_until_stopped(reporter, outbox, delivery, options)
    finally:
        client.close()
        reporter.close()
        outbox.close()


def _report_once(reporter: Reporter, outbox: Outbox, delivery: Delivery) -> int:
    outbox.add(to_json(reporter.report()))
    try:
        delivery.send_all(threading.Event())
    except SendError as error:
        logger.warning(
            "the report is not stored, and is kept", extra={"answer": str(error), "kept_reports": len(outbox)}
        )
        return 1
    return 0


def _report_until_stopped(reporter: Reporter, outbox: Outbox, delivery: Delivery, options: Options) -> int:
    stop, added, failed = threading.Event(), threading.Event(), threading.Event()

    def send() -> None:
        try:
            delivery.run(stop, added)
        except Exception:
            logger.exception("sending failed for an unforeseen reason: the agent ends, to be started again")
            failed.set()
            stop.set()

    _stop_on_signals(stop)
    sender = threading.Thread(target=send, name="sender", daemon=True)
    sender.start()
    logger.info("started", extra={"node": options.node.name, "server": options.server, "kept_reports": len(outbox)})
    for _ in _ticks(options.interval_seconds, stop):
        outbox.add(to_json(reporter.report()))
        added.set()
    added.set()
    sender.join(_LAST_REQUEST_SECONDS)
    logger.info("ended", extra={"kept_reports": len(outbox)})
    return 1 if failed.is_set() else 0


def _print_reports(reporter: Reporter, options: Options) -> int:
    stop = threading.Event()
    _stop_on_signals(stop)
    for _ in _ticks(options.interval_seconds, stop):
        sys.stdout.write(to_json(reporter.report()).decode() + "\n")
        sys.stdout.flush()
        if options.once:
            break
    reporter.close()
    return 0


def _ticks(interval_seconds: float, stop: threading.Event) -> Iterator[None]:
    """Once now, then at every interval until `stop`. What takes longer than an interval delays the ticks, no more."""
    due = time.monotonic()
    while not stop.is_set():
        yield
        due = max(due + interval_seconds, time.monotonic())
        stop.wait(due - time.monotonic())


def _stop_on_signals(stop: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())


if __name__ == "__main__":
    sys.exit(main())
