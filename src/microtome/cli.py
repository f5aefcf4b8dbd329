"""The command ``microtome``: look at a slide, find slides, make thumbnails, serve, see what the library does."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import MicrotomeError, OptionError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 2 for an error, which is one line on stderr."""
    args = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = _show_warning
            args.run(args)
    except (MicrotomeError, OSError) as e:
        print(f"microtome: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"microtome: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("microtome", description="Whole-slide images as lazy arrays.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="print a slide and its levels")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(run=_info)
    thumbnail = commands.add_parser("thumbnail", help="write a picture of the whole slide")
    thumbnail.set_defaults(run=_thumbnail)
    for command in (info, thumbnail):
        command.add_argument("slide", help="file, folder, glob or URL")
        command.add_argument("--series", help="series or pyramid UID, where there are several")
        command.add_argument("--frame-order", choices=("row", "column"), help="for files that do not state it")
    find = commands.add_parser("find", help="list the slides of a folder, a bucket or a DICOMweb server")
    find.add_argument("url", help="folder, glob or URL")
    find.add_argument("--limit", type=int, metavar="N", help="the most slides to list")
    find.add_argument("--csv", metavar="FILE", help="write the table to a file")
    find.add_argument(
        "--identifiers", action="store_true", help="with what tells patients: names, numbers, dates, texts"
    )
    find.set_defaults(run=_find)
    for command in (info, thumbnail, find):
        signed = command.add_mutually_exclusive_group()
        signed.add_argument("--token-env", metavar="NAME", help="environment variable with a token for the server")
        signed.add_argument("--google", action="store_true", help="use Google's application default credentials")
    thumbnail.add_argument("output", help="picture to write; its suffix is its format")
    thumbnail.add_argument("--size", type=int, default=1024, help="longest side in pixels (default: 1024)")
    serve = commands.add_parser("serve", help="offer a folder of slides as a DICOMweb server, for tests and demos")
    serve.add_argument("folder", nargs="+", help="folder of DICOM files, or a file")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    serve.add_argument("--port", type=int, default=8080, help="0 for any free one (default: 8080)")
    serve.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="name it may be called by")
    serve.add_argument("--associated", action="store_true", help="show labels and overviews, which carry names")
    serve.add_argument("--stow", action="store_true", help="let clients store instances in the (first) folder")
    serve.add_argument("--token-env", metavar="NAME", help="environment variable with the token to ask for")
    serve.add_argument("--insecure", action="store_true", help="let other machines in without a token")
    serve.add_argument("--dialect", default="standard", help="be like this server: google, orthanc, minimal")
    serve.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="wait before each answer")
    serve.add_argument("--bandwidth", type=float, metavar="BYTES", help="per second, for each connection")
    serve.set_defaults(run=_serve)
    demo = commands.add_parser("demo", help="make a synthetic slide and show what the library does with it")
    demo.add_argument("--size", type=int, default=4096, help="side in pixels, 1024 or more (default: 4096)")
    demo.add_argument("--dicomweb", action="store_true", help="read it from an embedded DICOMweb server")
    demo.set_defaults(run=_demo)
    return parser


def _open(args: argparse.Namespace, **options: Any) -> xr.DataTree:
    from microtome.opening import open_slide

    return open_slide(args.slide, series=args.series, frame_order=args.frame_order, **_signed(args), **options)


def _signed(args: argparse.Namespace) -> dict[str, Any]:
    """Return the credentials that were asked for, as an option."""
    from microtome import credentials

    if args.google:
        return {"credentials": credentials.default()}
    return {"credentials": credentials.bearer(env=args.token_env)} if args.token_env else {}


def _describe(slide: xr.DataTree) -> dict[str, Any]:
    """Return what `info` prints, as JSON has it."""
    levels = json.loads(slide.wsi.levels.reset_index().to_json(orient="records"))
    images = {}
    for name in slide.wsi.associated:
        image = slide["associated"][name].dataset["image"]
        images[name] = {"rows": image.sizes["row"], "columns": image.sizes["column"], "dtype": str(image.dtype)}
    first = next((n.dataset["image"] for n in slide.subtree if "image" in n.data_vars), None)
    return {
        "attributes": dict(slide.attrs),
        "channels": [str(c) for c in first.coords["c"].values] if first is not None else [],
        "levels": levels,
        "associated": images,
        "ignored": [{"file": file, "reason": reason} for file, reason in slide.wsi.ignored],
    }


def _info(args: argparse.Namespace) -> None:
    slide = _open(args, chunks=None)
    found = _describe(slide)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Output to a file or a pipe is as wide as it needs to be.
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(box=box.SIMPLE_HEAD, title=args.slide, title_justify="left", title_style="bold")
    for heading in ("level", "rows x columns", "µm/px", "power", "down", "frames", "frame", "stack", "dtype", "codec"):
        table.add_column(heading, justify="left" if heading in ("level", "codec", "dtype") else "right", no_wrap=True)
    for level in found["levels"]:
        table.add_row(*_cells(level))
    console.print(table)
    console.print(f"channels: {', '.join(found['channels'])}", highlight=False)
    for name, image in found["associated"].items():
        console.print(f"{name}: {image['rows']} x {image['columns']} {image['dtype']}", highlight=False)
    if found["ignored"]:
        console.print(f"{len(found['ignored'])} files are no part of the slide:", highlight=False)
        for item in found["ignored"][:5]:
            console.print(f"  {item['file']}: {item['reason']}", highlight=False, soft_wrap=True)


def _cells(level: dict[str, Any]) -> list[str]:
    row, column = level["row_spacing"], level["column_spacing"]
    if row is None:
        spacing, power = "undefined", ""
    else:
        power = f"{level['magnification']:.3g}X"
        spacing = f"{row * 1000:.4g}" if abs(row - column) < 1e-6 * row else f"{row * 1000:.6g} x {column * 1000:.6g}"
    stack = [f"{level['planes']} z"] * (level["planes"] > 1) + [f"{level['paths']} paths"] * (level["paths"] > 1)
    return [
        level["level"],
        f"{level['rows']} x {level['columns']}",
        spacing,
        power,
        f"{level['downsample']:.4g}",
        str(level["frames"]),
        f"{level['frame_rows']} x {level['frame_columns']}",
        ", ".join(stack),
        level["dtype"],
        level["codec"],
    ]


def _find(args: argparse.Namespace) -> None:
    from microtome.finding import find_slides
    from microtome.storage import display_uri

    table = find_slides(args.url, limit=args.limit, progress=True, **_signed(args))
    if not args.identifiers:
        # Attributes have names in capitals; of them the count alone tells of nobody.
        table = table[[name for name in table.columns if name[0].islower() or name.startswith("NumberOf")]]
    if args.csv:
        table.to_csv(args.csv, index=False)
        print(f"{args.csv}: {len(table)} slides")
        return
    shown = table.assign(url=[display_uri(url) for url in table.url]).drop(columns=["study_uid", "series_uid"])
    print(shown.to_string(index=False, na_rep="") if len(table) else "there are no slides")


def _thumbnail(args: argparse.Namespace) -> None:
    from microtome.ops.levels import level_names
    from microtome.ops.picture import overview, save

    if args.size < 1:
        raise OptionError(f"--size {args.size}: a picture has at least one pixel a side")
    slide = _open(args, chunks=None)
    if not level_names(slide):
        raise OptionError(f"{args.slide}: has no levels, only {', '.join(slide.wsi.associated)}")
    picture = overview(slide, args.size)
    save(picture, args.output)
    print(f"{args.output}: {picture.width} x {picture.height}")


def _serve(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    import threading

    from microtome.testing import DICOMwebServer
    from microtome.testing.dicomweb.auth import is_loopback

    token = os.environ.get(args.token_env) if args.token_env else None
    if args.token_env and not token:
        raise OptionError(f"--token-env {args.token_env}: there is no such environment variable, or nothing in it")
    if not (token or args.insecure or is_loopback(args.host)):
        raise OptionError(
            f"--host {args.host}: other machines could read the slides; give --token-env NAME to ask them for a token, "
            "or --insecure to let everyone in"
        )
    if not 0 <= args.port < 65536:
        raise OptionError(f"--port {args.port}: ports are 0 to 65535")
    server = DICOMwebServer(
        args.folder, host=args.host, port=args.port, dialect=args.dialect, tokens={token} if token else None,
        latency=args.latency, bandwidth=args.bandwidth, associated=args.associated, stow=args.stow,
        allowed_hosts=args.allow_host,
    )  # fmt: skip
    try:
        with server:
            print(f"DICOMweb at {server.url}")
            if server.archive.hidden:
                print(f"{server.archive.hidden} labels and overviews are hidden; --associated shows them")
            option = f', credentials=mt.credentials.bearer(env="{args.token_env}")' if token else ""
            for url in server.series_urls():
                print(f'mt.open_slide("{url}"{option})')
            if not server.series_urls():
                print("there are no slides yet")
            print("Ctrl-C stops", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped")


def _demo(args: argparse.Namespace) -> None:
    from microtome.demo import show

    if args.size < 1024:
        raise OptionError(f"--size {args.size}: the demo reads regions of a slide of at least 1024 pixels a side")
    with tempfile.TemporaryDirectory() as folder:
        where = show(Path(folder), args.size, dicomweb=args.dicomweb)
        if where is not None:
            _thumbnail(_parser().parse_args(["thumbnail", where, "demo.png"]))
