"""`loraloom studio`: the web page for making pictures, looking at adapters and training."""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraloom.cli.options import Debug, Json
from loraloom.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from loraloom.studio.address import Address
    from loraloom.studio.places import Places

_LIBRARIES = {"gradio": "studio", "diffusers": "images"}

_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_ALLOWED_PATHS": "",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Set before gradio is imported, which reads them then: nothing is sent anywhere, nothing is shared."""


def studio(
    *,
    base: Annotated[
        str, typer.Option(metavar="NAME", help="What paints: a diffusers folder, a .safetensors file, or a name.")
    ] = "scenes",
    adapters: Annotated[
        list[str], typer.Option("--adapters", metavar="DIR", help="Folder of adapters for the sliders; repeatable.")
    ] = [],  # noqa: B006 typer wants the default as it is
    embeddings: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of textual inversion embeddings.")
    ] = None,
    pictures: Annotated[str, typer.Option(metavar="DIR", help="Where pictures are kept.")] = "pictures",
    runs: Annotated[str, typer.Option(metavar="DIR", help="Where training runs go.")] = "runs",
    data: Annotated[
        list[str],
        typer.Option("--data", metavar="DIR", help="Folder that training may read; repeatable. [default: this one]"),
    ] = [],  # noqa: B006 typer wants the default as it is
    host: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Address to listen on; any but loopback asks for a password. [default: this machine alone]",
            show_default=False,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, metavar="N", help="Port. [default: the first free one from 7860]"),
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Ask for this password; the user is 'studio'. [default: made up and shown]"),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Open the web page for making pictures and training.

    It listens on this machine alone, unless --host says otherwise. Ctrl+C ends it; a training goes on.
    """
    check_libraries()
    os.environ |= _ENVIRONMENT
    from loraloom.studio.places import Places

    folders = [_folder(name, "--adapters") for name in adapters]
    reads = [_folder(name, "--data") for name in data] or [Path.cwd()]
    known = None if embeddings is None else _folder(embeddings, "--embeddings")
    places = Places(tuple(folders), Path(pictures), Path(runs), tuple(reads), known)
    from loraloom.studio.address import Address

    address = Address(host, port, _password(host, password))
    with tempfile.TemporaryDirectory(prefix="loraloom-page-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        _open(base, places, address, as_json=json)


def check_libraries() -> None:
    """Raise MissingExtraError unless gradio and diffusers are installed."""
    for library, extra in _LIBRARIES.items():
        if importlib.util.find_spec(library) is None:
            raise MissingExtraError(
                f"the studio needs the package {library}; install it with: pip install 'loraloom[{extra}]'"
            )


def _folder(name: str, option: str) -> Path:
    path = Path(name)
    if not path.is_dir():
        raise ConfigError(f"{option} '{name}': there is no such folder")
    return path


def _password(host: str, given: str | None) -> str | None:
    """The password to ask for; None on loopback, where only this machine's users can come from."""
    if given is not None and len(given) < 8:
        raise ConfigError("--password: 8 characters are the least")
    from loraloom.studio.address import LOOPBACK

    return given if given is not None or host in LOOPBACK else secrets.token_urlsafe(12)


def _open(base: str, places: Places, address: Address, *, as_json: bool) -> None:
    """Serve the page until Ctrl+C."""
    from loraloom.studio import page
    from loraloom.studio.opening import open_desk

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a service that is stopped cleans up too
    desk = open_desk(base, places)
    built = page.build(desk)
    try:
        url = page.serve(built, desk, address, block=False)
        _tell(url, address, as_json=as_json)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    except OSError as error:
        raise ConfigError(f"--port {address.port}: {_reason(error)}; choose another one") from None
    finally:
        built.close(verbose=False)
        desk.close()
    if (running := desk.runs.running()) is not None:
        print(f"'{running}' goes on training; open the studio again to watch or stop it", file=sys.stderr)


def _reason(error: OSError) -> str:
    return "it is taken" if "empty port" in str(error) else str(error.strerror or error).lower()


def _tell(url: str, address: Address, *, as_json: bool) -> None:
    """Where the page is, and what to sign in with."""
    from loraloom.cli import output
    from loraloom.studio.page import USER

    if as_json:
        output.emit({"url": url, "user": USER if address.password else None, "password": address.password})
        sys.stdout.flush()
        return
    output.say(f"the studio is open at {url}", "Ctrl+C closes it")
    if address.password:
        output.say(f"sign in as {USER} with the password {address.password}")
