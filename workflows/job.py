"""What every job shares: command line, streams, signals, exit codes, and the one JSON line at the end."""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from itertools import islice, pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol, TypeVar, get_args

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from data.encoding import EncodingFormatError
from data.listing import DataError
from data.output import LostError, OutputError
from data.overrides import ColumnOverrideError
from data.stores import StoreError, silence
from vae.bundle_files import BundleError
from workflows.checks import ConfigError, require
from workflows.errors import CheckFailed, ComputationError, Incomplete, ServiceError, TryAgain, logger
from workflows.pinned import without_password

EXIT_CODES: list[tuple[type[BaseException], int]] = [
    (ConfigError, 2),
    (ColumnOverrideError, 2),
    (CheckFailed, 3),
    (DataError, 65),
    (ServiceError, 69),
    (StoreError, 69),
    (OutputError, 73),
    (TryAgain, 75),
    (LostError, 75),
    (KeyboardInterrupt, 75),
    (BundleError, 76),
    (EncodingFormatError, 76),
    (ComputationError, 1),
]


class Checked(Protocol):
    def check(self) -> None:
        """Raises ConfigError for values that cannot be."""


Config = TypeVar("Config", bound=Checked)


class Parser(ArgumentParser):
    """A parser that takes --NAME for --NAME true, and names the options which one that it does not know may have been meant to be."""

    def with_values(self, arguments: list[str]) -> list[str]:
        """Returns a command line in which every option that is true or false has its value."""
        switches = {option for action in self._actions if getattr(action, "_typehint", None) is bool for option in action.option_strings}
        values: list[str] = []
        for argument, following in pairwise([*arguments, "--"]):
            values += [argument, "true"] if argument in switches and following.startswith("--") else [argument]
        return values

    def refuse_empty(self, given: Mapping[str, Any], prefix: str = "") -> None:
        """Raises ConfigError for what is null and may not be, and for keys that are not known, which pass where they hold an empty map."""
        options = {action.dest: getattr(action, "_typehint", None) for action in self._actions}
        sections = {dest.rpartition(".")[0] for dest in options if "." in dest}
        for name, value in given.items():
            key = prefix + name
            if key in sections:
                require(value is not None, key, value, "a section with options, or left out")
                self.refuse_empty(value, key + ".")
            elif key not in options:
                raise ConfigError(f"{key} is no option; --help lists every option")
            elif value is None:
                hint = options[key]
                may_be_null = hint is None or hint is Any or type(None) in get_args(hint)
                require(may_be_null, key, value, "given a value, or left out")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        known = [option.removeprefix("--") for option in options if not option.endswith("+")]  # --OPTION+ is a list's other spelling
        unknown = re.findall(r"(?<!\S)--([^\s=]+)", message) if "unrecognized arguments" in message else []
        unknown += [f"{group}.{option}" for group, option in re.findall(r"Group '(.+)' does not accept option '(.+)'", message)]
        meant = {name: likely(name, known) for name in unknown}
        hints = [f"\n  --{name}: did you mean {' or '.join(f'--{other}' for other in others)}?" for name, others in meant.items() if others]
        super().error(message + "".join(hints), ex)


def likely(name: str, known: list[str]) -> list[str]:
    """Returns up to three options that end as a name does, or else are spelled almost as it."""
    same = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    return (same or difflib.get_close_matches(name, known, cutoff=0.75))[:3]


def files_first(arguments: list[str]) -> list[str]:
    """Returns a command line with its --config files in front, so that its other options overrule them wherever they stand."""
    files: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        part = files if argument == "--config" or argument.startswith("--config=") else others
        part += [argument, *islice(rest, 1)] if argument == "--config" else [argument]
    return files + others


def parse(config_type: type[Config], arguments: list[str] | None = None) -> Config:
    """Returns the configuration of defaults < --config file < command line; unknown keys and wrong types exit with 2."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    program = os.path.basename(sys.argv[0])
    usage = f"python workflows/{program} [--config FILE.yaml] [--section.key value ...]   (--help lists every option)"
    parser = Parser(prog=program, usage=usage, description=config_type.__doc__, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_class_arguments(config_type, None)
    given = parser.parse_args(files_first(parser.with_values(sys.argv[1:] if arguments is None else arguments)))
    for file in given.config or []:  # what is unknown and empty there is not among what was parsed
        parser.refuse_empty(yaml.safe_load(Path(str(file)).read_text(encoding="utf-8")) or {})
    parser.refuse_empty(given.as_dict())
    values = parser.instantiate(given).as_dict()
    values.pop("config", None)
    config = config_type(**values)
    config.check()
    return config


def run(main: Callable[[Config], dict[str, Any]] | str, config_type: type[Config]) -> NoReturn:
    """Parses the command line, runs the job and exits with its code; standard output gets nothing but the JSON line.

    main: the job, or MODULE:FUNCTION where its imports take seconds, for which neither --help nor a typo has to wait.
    """
    standard_output = os.fdopen(os.dup(1), "w")
    show = {"--help", "-h"}.intersection(sys.argv) or any(a.startswith("--print_config") for a in sys.argv)
    if not show:
        os.dup2(2, 1)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    stop_on_sigterm()
    result: dict[str, Any] | None
    try:
        config = parse(config_type)
        result = (named(main) if isinstance(main, str) else main)(config)
    except BaseException as error:  # the border: whatever it was becomes a message and an exit code
        code = exit_code(error)
        explain(error)
        result = error.result if isinstance(error, Incomplete) else None
    else:
        code = 0
    if result is not None:
        print(json.dumps(result, allow_nan=False), file=standard_output, flush=True)
    flush_and_exit(code)


def named(name: str) -> Callable[[Any], dict[str, Any]]:
    module, _, function = name.partition(":")
    found: Callable[[Any], dict[str, Any]] = getattr(import_module(module), function)
    return found


def exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1 if error.code else 0
    cause = known_cause(error)
    return next((code for kind, code in EXIT_CODES if isinstance(cause, kind)), 1)


def known_cause(error: BaseException) -> BaseException | None:
    """Returns the failure of ours that an exception is, or that Ray wrapped on its way from another process."""
    stop = stop_before(error)
    if stop is not None:
        return stop
    kinds = tuple(kind for kind, _ in EXIT_CODES)
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    while waiting:
        here = waiting.pop(0)
        if isinstance(here, OSError):
            here = silence(here) or here
        # Ray's exception is of its cause's type too, and its message is a traceback.
        if isinstance(here, kinds) and not isinstance(getattr(here, "cause", None), kinds):
            return here
        seen.add(id(here))
        failures = getattr(here, "worker_failures", None) or {}
        inner = [here.__cause__, getattr(here, "cause", None), *failures.values()]
        waiting += [e for e in inner if isinstance(e, BaseException) and id(e) not in seen]
    return None


def stop_before(error: BaseException | None) -> KeyboardInterrupt | None:
    """Returns the stop after which an exception came, where it did: a service manager ends Ray's processes together with the job's."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def explain(error: BaseException) -> None:
    if isinstance(error, SystemExit):
        return
    cause = known_cause(error)
    if isinstance(cause, KeyboardInterrupt):
        print("stopped; the same command with the same names goes on from what was saved", file=sys.stderr)
    elif cause is not None:
        print(f"error: {without_password(str(cause))}", file=sys.stderr)
    else:
        traceback.print_exception(error, file=sys.stderr)


def flush_and_exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def stop_on_sigterm() -> None:
    """Makes SIGTERM what Ctrl-C is. Call it again after ray.init, which installs a handler of its own."""

    def stop(signum: int, frame: FrameType | None) -> None:
        # No Exception: logging and MLflow swallow those, and the job would go on as if nobody had asked.
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
