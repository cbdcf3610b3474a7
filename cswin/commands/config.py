"""Check a configuration file, compare two, or print what is generated from the settings and the ledger."""

from __future__ import annotations

from pathlib import Path


def configure(parser):
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", metavar="FILE", type=Path, help="check a configuration file and print its resolved stages")
    what.add_argument(
        "--diff", metavar=("A", "B"), nargs=2, type=Path, help="print the differences between two configuration files"
    )
    what.add_argument("--schema", action="store_true", help="print the JSON schema (config/schema.json)")
    what.add_argument("--reference", action="store_true", help="print the reference page (config/README.md)")
    what.add_argument(
        "--ledger", action="store_true", help="print the recipe beside the authors' and the report's (docs/recipe.md)"
    )


def run(args):
    from cswin.config import compare, reference, resolve

    if args.schema:
        print(reference.schema_text(), end="")
    elif args.reference:
        print(reference.reference_text(), end="")
    elif args.ledger:
        from cswin.config.ledger import ledger_text

        print(ledger_text(), end="")
    elif args.diff:
        print(compare.differences_table(*args.diff), end="")
    else:
        settings = resolve.load_settings(args.check)
        for name in settings.stages:
            print(f"# {name}\n{resolve.dump(resolve.resolve_stage(settings, name))}")
