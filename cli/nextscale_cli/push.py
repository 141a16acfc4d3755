"""``nextscale push``"""

from __future__ import annotations

from typing import Annotated

import typer

from nextscale_cli.options import Run


def push(
    run: Run,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="OWNER/NAME on the hub, or a new folder: ./FOLDER or /.../FOLDER.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    branch: Annotated[str | None, typer.Option(metavar="BRANCH", help="Commit to this branch of it.")] = None,
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="The license, for the model card: apache-2.0, cc-by-4.0 ...")
    ] = None,
    message: Annotated[str | None, typer.Option(help="The message of the commit.")] = None,
) -> None:
    """Share a run: on the hub, or as a folder.

    Shared are its settings, its finished models, a model card, and its results and pictures, if it has any. Data,
    checkpoints, tokens and the paths of this computer are not shared. The upload is one commit. Others load it
    as hf:OWNER/NAME.
    """
    from pathlib import Path

    from nextscale.errors import ConfigError
    from nextscale.sharing.push import is_folder_name, push_to_folder
    from nextscale.sharing.push import push as push_to_hub

    if is_folder_name(name):
        if private or branch is not None or message is not None:
            raise ConfigError(f"{name} is a folder: --private, --branch and --message are for the hub")
        typer.echo(push_to_folder(run, Path(name), license))
        return
    loaded_by, commit = push_to_hub(run, name, private, branch, license, message)
    typer.echo(commit)
    typer.echo(f"others draw from it with: nextscale sample {loaded_by}")
