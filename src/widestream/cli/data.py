"""`widestream data`: prepare text, in parts too, look at what was prepared, train a tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from widestream.cli.as_json import Json, print_json
from widestream.data.options import DEFAULT_CUT, DEFAULT_MAX_RECORD

if TYPE_CHECKING:
    from rich.console import Console

_MOST_FILES = 50
"""Files that a table names, at most."""

Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH...",
        help="What to read: .txt or .md files (cut into documents, see --cut), a JSON object a line (.jsonl, .ndjson, "
        ".json), both also packed (.gz, .xz, .zst, .bz2), .parquet, folders of them, bundled:prose, or "
        "hf:OWNER/NAME\\[:CONFIG]\\[@REVISION]. Files named for validation or test are not trained on.",
    ),
]
Heldout = Annotated[
    float,
    typer.Option(
        help="Fraction of the documents to hold out, chosen by a hash of their text, and at least one of five or more; "
        "0 for none. Documents with a field split (train or heldout) keep theirs."
    ),
]
Cut = Annotated[
    int,
    typer.Option(
        metavar="BYTES",
        help="Cut .txt and .md files into documents of that many bytes at most, behind a blank line if possible, else "
        "behind a line or a word; 0 makes each file one document.",
    ),
]
MaxRecord = Annotated[
    int, typer.Option(metavar="BYTES", help="Bytes of a line or a text, at most. A longer one is a bad record.")
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        help="Pass over bad records (no text, not JSON, not UTF-8, too long), and lines of text files that are not "
        "UTF-8; count them, and note the first in the manifest. Otherwise the first one is an error.",
    ),
]
TextField = Annotated[str, typer.Option(help="Field (.jsonl) or column (.parquet, hf:) that holds the text.")]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace data prepared in another way.")]


def prepare(
    paths: Paths,
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    tokenizer: Annotated[str, typer.Option(metavar="byte|gpt2|PATH", help="PATH is a tokenizer.json.")] = "byte",
    boundary: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="Token of a tokenizer.json to put between documents. Default: <|endoftext|> or its like.",
        ),
    ] = None,
    heldout: Heldout = 0.005,
    workers: Annotated[int | None, typer.Option(help="Threads that tokenize. Default: one a CPU.")] = None,
    shard_tokens: Annotated[int, typer.Option(help="Tokens in a shard, at most.")] = 100_000_000,
    text_field: TextField = "text",
    cut: Cut = DEFAULT_CUT,
    max_record: MaxRecord = DEFAULT_MAX_RECORD,
    skip_bad: SkipBad = False,
    allow_lost_text: Annotated[
        bool,
        typer.Option(
            "--allow-lost-text",
            help="Go on where the tokenizer cannot spell characters, without them; the manifest says how many. There "
            "are no bits per byte on such data.",
        ),
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Prepare only the I-th of N parts of the files, such as 3/8; `widestream data merge` joins them.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn text into shards of tokens to train on.

    If it is killed, the same command goes on from where it stopped.
    The same text, tokenizer and options give the same files.

    For example:

        widestream data prepare bundled:prose --out data/prose

        widestream data prepare book.txt --out data/book --cut 20000

        widestream data prepare my_texts/ more.jsonl.gz --out data/mine --tokenizer bpe.json --heldout 0.02

        widestream data prepare hf:roneneldan/TinyStories --out data/stories --tokenizer gpt2

        widestream data prepare my_texts/ --out parts/3 --part 3/8
    """
    from widestream.data.options import PrepareOptions, parse_part
    from widestream.data.prepare import prepare as run
    from widestream.data.tokenizer import resolve_tokenizer

    options = PrepareOptions(
        heldout=heldout,
        shard_tokens=shard_tokens,
        text_field=text_field,
        cut=cut,
        max_record=max_record,
        skip_bad=skip_bad,
        allow_lost_text=allow_lost_text,
        part=None if part is None else parse_part(part),
    )
    resolved = resolve_tokenizer(tokenizer, boundary)
    run(paths, out, resolved, options, workers=workers, overwrite=overwrite)
    inspect(out)
    typer.echo(f"encoded by {resolved.engine}")


def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Parts, made by `data prepare --part`.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    overwrite: Overwrite = False,
) -> None:
    """Join parts that were prepared by separate jobs into one prepared folder.

    It holds the same documents in the same order as one preparation of everything.

    For example:

        widestream data merge parts/* --out data/mine
    """
    from widestream.data.merge import merge as run

    run(folders, out, overwrite=overwrite)
    inspect(out)


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder written by `widestream data prepare`.")],
    as_json: Json = False,
    documents: Annotated[
        int, typer.Option(min=0, help="Show the beginnings of that many documents of each split.")
    ] = 0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything and check hashes, document starts and token ids.")
    ] = False,
) -> None:
    """Show what a prepared folder holds: tokens, bytes, documents, tokenizer.

    For example:

        widestream data inspect data/prose --documents 2

        widestream data inspect data/prose --verify
    """
    from widestream.data.inspection import inspect_folder

    description = inspect_folder(folder, documents, verify)
    if as_json:
        print_json(description)
    else:
        _print(description)


def train_tokenizer(
    paths: Paths,
    out: Annotated[Path, typer.Option(help="The tokenizer.json to write.")],
    vocab_size: Annotated[int, typer.Option(help="Number of ids, at least 257.")],
    heldout: Heldout = 0.005,
    text_field: TextField = "text",
    cut: Cut = DEFAULT_CUT,
    max_record: MaxRecord = DEFAULT_MAX_RECORD,
    skip_bad: SkipBad = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Train a byte-level BPE tokenizer on the training documents.

    Give `data prepare` the same paths, --heldout and --cut:
    then the held-out documents stay unseen.

    For example:

        widestream data train-tokenizer bundled:prose --out bpe4096.json --vocab-size 4096
    """
    from widestream.data.bpe import train_tokenizer as run
    from widestream.data.options import PrepareOptions

    options = PrepareOptions(heldout=heldout, text_field=text_field, cut=cut, max_record=max_record, skip_bad=skip_bad)
    tokenizer = run(paths, vocab_size, out, options, overwrite=overwrite)
    fewer = "" if tokenizer.vocab_size == vocab_size else f" ({vocab_size:,} asked for: the text has no more to merge)"
    typer.echo(f"{out}: {tokenizer.vocab_size:,} ids{fewer}")


def _print(description: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("split", "tokens", "bytes", "bytes/token", "documents", "shards")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, split in description["splits"].items():
        counts = [f"{split[key]:,}" for key in ("tokens", "bytes")]
        table.add_row(name, *counts, f"{split['bytes_per_token']:.3f}", f"{split['documents']:,}", str(split["shards"]))
    console, tokenizer = Console(), description["tokenizer"]
    _print_files(console, description)
    console.print(table)
    facts = (
        f"tokenizer {tokenizer['kind']}, {tokenizer['vocab_size']:,} ids, boundary {tokenizer['boundary_id']}, "
        f"SHA-256 {tokenizer['sha256'][:12]}...; {description['dtype']}; "
        f"{description['empty_documents']:,} empty documents dropped"
    )
    if part := description["settings"].get("part"):
        facts = f"part {part[0]} of {part[1]}; {facts}"
    checked = "; every hash, document start and token id is right" if description["verified"] else ""
    for line in (facts + checked, *_warnings(description)):
        console.print(line, markup=False, highlight=False)
    for name, split in description["splits"].items():
        for number, beginning in enumerate(split["beginnings"]):
            console.print(f"\n{name} document {number}: {beginning!r}", markup=False, highlight=False)


def _print_files(console: "Console", description: dict[str, Any]) -> None:
    """A table of the files that were read and that were passed over, of each the first `_MOST_FILES`."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("file", "split", "bytes")
    table.columns[2].justify = "right"
    read, passed_over = description["files"], description["passed_over"]
    for file in read[:_MOST_FILES]:
        size = "" if file["bytes"] is None else f"{file['bytes']:,}"
        table.add_row(escape(file["path"]), file["split"] or "", size)
    for entry in passed_over[:_MOST_FILES]:
        table.add_row(escape(entry["path"]), f"passed over: {escape(entry['reason'])}", "")
    for rows, what in ((read, "read"), (passed_over, "passed over")):
        if len(rows) > _MOST_FILES:
            table.add_row(f"... and {len(rows) - _MOST_FILES:,} more {what}: see manifest.json", "", "")
    if table.row_count:
        console.print(table)


def _warnings(description: dict[str, Any]) -> list[str]:
    """What of the text is not in the data, and what follows from it."""
    lines = []
    if (bad := description["skipped"])["records"]:
        lines.append(f"{bad['records']:,} bad records passed over, the first: {bad['first'][0]}")
    for name, split in description["splits"].items():
        if lost := split["lost_characters"]:
            lines.append(f"{name}: {lost:,} characters ({lost / split['characters']:.2%}) are not in the tokens")
        if changed := split["changed_documents"]:
            lines.append(
                f"{name}: the tokens tell {changed:,} documents otherwise (capitals, white space, parts left out)"
            )
    if lines and any(
        split["lost_characters"] or split["changed_documents"] for split in description["splits"].values()
    ):
        lines.append("bits per byte are not given on such data: they would be of another text")
    if description["splits"].keys() == {"train", "test"}:
        lines.append("nothing is held out but the split test: train with data.heldout_split=test")
    return lines
