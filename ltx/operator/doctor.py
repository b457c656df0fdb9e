"""The `doctor` command, and the quick checks that gate a start."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping

from ltx.cancellation import Cancellation
from ltx.errors import ConfigError, JobError, Refusal, ToolFailed, Unavailable
from ltx.operator.checks import CHECKS
from ltx.operator.console import signals
from ltx.operator.findings import EDIT, Check, DoctorContext, Finding
from ltx.settings import Settings, read_environ
from ltx.text import one_line, redact


def examine(context: DoctorContext, checks: Iterable[Check]) -> Iterator[Finding]:
    """Goes through the table; what hangs on a failed check is skipped."""
    failed = set[str]()
    for check in checks:
        if lost := sorted(failed.intersection(check.needs)):
            failed.add(check.name)
            yield Finding(check.name, "WARN", f"skipped, as {lost[0]} failed")
            continue
        try:
            message = list(check.run(context))
        except (JobError, ConfigError, Unavailable, Refusal, ToolFailed, OSError) as error:
            if context.cancellation.stopping:
                raise
            message = [("FAIL", str(error), check.fix)]
        # An OK that came after a complaint is none.
        bad = [one for one in message if one[0] != "OK"] or message
        failed.update(check.name for status, _, _ in bad if status == "FAIL")
        yield from (Finding(check.name, *one) for one in bad)


def check_box(settings: Settings, cancellation: Cancellation, checks: Iterable[Check]) -> None:
    """The checks that are quick, before any work. Raises ConfigError with all that FAILs."""
    found = examine(DoctorContext(settings, cancellation), checks)
    bad = [f"{one.detail}. Next: {one.next}" for one in found if one.status == "FAIL"]
    if bad:
        raise ConfigError(*bad)


def diagnose(environ: Mapping[str, str], cancellation: Cancellation) -> Generator[Finding]:
    """The settings, then the whole table."""
    try:
        settings = Settings.load(environ)
    except ConfigError as error:
        for problem in error.problems:
            yield Finding("settings", "FAIL", problem, EDIT)
        yield from (Finding(check.name, "WARN", "skipped, as settings failed") for check in CHECKS)
        return
    redact.hide(settings.secrets)
    yield Finding("settings", "OK", "all there")
    context = DoctorContext(settings, cancellation)
    with context.undo:
        yield from examine(context, CHECKS)


def doctor_command(options: argparse.Namespace) -> int:
    """Says what is wrong with this box and what to do next; 0 only when nothing FAILs."""
    cancellation, findings = Cancellation(), list[Finding]()
    with signals(cancellation), contextlib.closing(diagnose(read_environ(), cancellation)) as found:
        for finding in found:
            findings.append(finding)
            if not options.json:
                print(f"{finding.status:4} {finding.check}: {one_line(finding.detail)}", flush=True)
                if finding.next:
                    print(f"     next: {finding.next}", flush=True)
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    return 1 if any(finding.status == "FAIL" for finding in findings) else 0
