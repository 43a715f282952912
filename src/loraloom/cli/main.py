"""The command line: one verb, one module, imported when the verb is called for.

Exit status: 0 done; 1 a failure of ours; 2 something for the user to mend; 130 interrupted. An error is one
sentence on stderr and nothing on stdout, but for `--json`: then stdout holds one object, {"error": {...}}.
"""

from __future__ import annotations

import errno
import importlib
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, TyperException

import loraloom
from loraloom.errors import LoraloomError, suggest

VERBS = {
    "train": "Fine-tune a base model on your data, with LoRA or in full.",
    "evaluate": "Score a trained model on a file of labelled examples.",
    "predict": "Use a trained model on new examples.",
    "data": "Look at a data set before training on it.",
    "inspect": "Show what an adapter changes, and how much of its rank it uses.",
    "doctor": "Check versions, devices, memory and what is missing.",
    "prompt": "Show how a prompt for pictures is understood, step by step.",
    "generate": "Make pictures from a prompt, with any number of weighted adapters.",
    "grid": "Make one sheet of pictures over adapter weights, prompts, seeds and more.",
    "convert": "Write an adapter file in another program's format, and prove that it is the same.",
    "compare": "Show how adapters agree, interfere and weigh, before they are mixed.",
    "mix": "Make one adapter of several, each by its weight, with the error printed.",
    "resize": "Give an adapter the smallest rank that keeps what you ask for.",
    "merge": "Fold adapters into a base model, as a checkpoint of its own.",
    "extract": "Make an adapter of what a fine-tuned checkpoint has over its base.",
    "studio": "Open the web page for making pictures and training.",
    "demo": "Train LoRA and full fine-tuning side by side on a small sentiment set.",
}
"""Verb to summary. The verb `x` is the function `x` of `loraloom.cli.x`, whose SUBVERBS, if any, are its own verbs."""

OUR_FAILURE, USER_ERROR, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141

_QUIET = {
    "DATASETS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Libraries that would talk on stderr between our own lines; they read these when they are imported."""

_QUIET_LOGGERS = ("bitsandbytes", "diffusers", "torchao", "torch.utils._pytree")
"""transformers and diffusers import torchao and bitsandbytes wherever these are installed, which then tell of every
kernel that they cannot load."""


class VerbGroup(TyperGroup):
    """Commands that are imported one by one, on demand."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every verb, in the order of a user's first day."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of one verb. Raises a usage error that names the nearest verb for an unknown one."""
        if cmd_name not in VERBS:
            ctx.fail(f"there is no verb {cmd_name!r}{suggest(cmd_name, VERBS, most=1)}")
        module = importlib.import_module(f"loraloom.cli.{cmd_name}")
        if hasattr(module, "SUBVERBS"):
            return _group(cmd_name, module)
        verb = typer.Typer(add_completion=False, rich_markup_mode=None)
        verb.command(cmd_name)(getattr(module, cmd_name))
        return typer.main.get_command(verb)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The summaries from the table, so that `--help` imports no verb."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


class SubverbGroup(TyperGroup):
    """The verbs of one verb, such as `check` of `data`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the words ask for. Raises a usage error that names the nearest verb for an unknown one."""
        if args and args[0] not in self.commands:
            ctx.fail(f"{ctx.info_name} has no verb {args[0]!r}{suggest(args[0], self.commands, most=1)}")
        return super().resolve_command(ctx, args)


def _group(name: str, module: Any) -> Any:
    """The command of a verb that has verbs of its own."""
    group = typer.Typer(cls=SubverbGroup, name=name, epilog=module.EPILOG, add_completion=False, rich_markup_mode=None)
    group.callback()(getattr(module, name))
    for verb, function in module.SUBVERBS.items():
        group.command(verb)(function)
    return typer.main.get_command(group)


app = typer.Typer(
    cls=VerbGroup,
    name="loraloom",
    help="Fine-tune pretrained models with LoRA.",
    epilog="loraloom VERB --help explains a verb; loraloom demo shows it all.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"loraloom {loraloom.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end."),
    ] = False,
) -> None:
    """Fine-tune pretrained models with LoRA."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; no exception leaves it.

    `argv` are the words after the program's name; None takes those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "--debug" not in words:
        _keep_libraries_quiet()
    try:
        status = _run(words)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # a pipe's reader has had enough: `loraloom predict … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (KeyboardInterrupt, Abort):
        status = INTERRUPTED
    except Exception as error:  # the border: whatever happens, the user reads one sentence
        return _failed(error, words)
    return _failed(_Interrupted(_interrupted(words)), words) if status == INTERRUPTED else status


def _keep_libraries_quiet() -> None:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|diffusers)\.")


def _run(words: list[str]) -> int:
    """Call the verb. Typer returns the code of an Exit, and 130 in place of a KeyboardInterrupt."""
    status = typer.main.get_command(app)(words, prog_name="loraloom", standalone_mode=False)
    return status if isinstance(status, int) else 0


class _Interrupted(Exception):
    """Ctrl-C, as the sentence to print."""


def _interrupted(words: list[str]) -> str:
    if words[:1] == ["train"]:
        return "interrupted; the same command with --resume goes on from the last checkpoint"
    return "interrupted"


def _failed(error: Exception, words: list[str]) -> int:
    """Tell an error as one sentence, and as one object with --json; returns the exit status."""
    status, sentence = _sentence(error)
    if "--debug" in words:
        traceback.print_exception(error)
    if "--json" in words:
        print(json.dumps({"error": {"kind": type(error).__name__.lstrip("_"), "message": sentence}}))
    print(f"loraloom: {sentence}", file=sys.stderr)
    return status


def _sentence(error: Exception) -> tuple[int, str]:
    if isinstance(error, _Interrupted):
        return INTERRUPTED, str(error)
    if isinstance(error, LoraloomError):
        return USER_ERROR, str(error)
    if isinstance(error, TyperException):
        return USER_ERROR, _usage(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return USER_ERROR, f"no space is left on the disk{_of_file(error)}: free some, then run it again"
    if isinstance(error, PermissionError):
        return USER_ERROR, f"no permission to use the file{_of_file(error)}"
    text = " ".join(str(error).split()) or "no message"
    return OUR_FAILURE, f"failed with {type(error).__name__}: {text} (--debug shows the traceback)"


def _of_file(error: OSError) -> str:
    return f" {error.filename}" if error.filename else ""


def _usage(error: TyperException) -> str:
    """A usage error as one sentence that names the nearest option and where to read on."""
    context: Any = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".")
    option = getattr(error, "option_name", None)
    if context is None:
        return message
    if option is not None and message.startswith("No such option"):
        known = [name for parameter in context.command.params for name in parameter.opts]
        message = f"there is no option {option}{suggest(option, known, most=1)}"
    end = "" if message.endswith("?") else ";"
    return f"{message[:1].lower()}{message[1:]}{end} `{context.command_path} --help` lists what there is"
