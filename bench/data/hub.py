"""Data sets of the Hugging Face hub: downloaded by `bench prepare`, kept as a copy in the data folder, read from there.

A copy lies in `<data folder>/hub/<repository>/<configuration>/<revision>`: a folder per split, as
`Dataset.save_to_disk` writes it, and origin.json, which says where it came from. Reading it needs no network.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError, NotPrepared
from bench.data import user_tables
from bench.data.datasets import FileSignature, content, content_sha256, damaged, data_folder, locked, signature
from bench.data.download import writing
from bench.store.run_folder import to_json

SECONDS_TO_ANSWER = 10.0
ORIGIN = "origin.json"


def hub_splits(
    repository: str, config: str | None = None, revision: str | None = None
) -> tuple[Mapping[str, Any], str]:
    """Return the hub's splits of a data set and their revision; offline, those that `datasets` has cached.

    Raises:
        Exception: any of four libraries' own: there is no network and no cache, or no such data set.
    """
    import datasets
    import huggingface_hub

    unreachable, before = None, datasets.config.HF_HUB_OFFLINE
    try:
        # Asked first, and once: `datasets` itself would go on trying for half a minute without a network.
        huggingface_hub.dataset_info(repository, revision=revision, timeout=SECONDS_TO_ANSWER)
    except Exception as error:
        unreachable = error
        datasets.config.HF_HUB_OFFLINE = True
    try:
        builder = datasets.load_dataset_builder(repository, config, revision=revision)
        # Offline, `datasets` takes whichever revision it has cached.
        if unreachable and revision and not str(builder.hash).startswith(revision):
            raise unreachable
        builder.download_and_prepare()
        return builder.as_dataset(), str(builder.hash)
    except Exception as error:
        raise (unreachable or error) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@dataclass(frozen=True)
class HubDataset:
    """A data set of the hub, and its copy in the data folder.

    Attributes:
        repository: owner/name.
        config: the configuration (subset); None for the only one.
        revision: a commit, tag or branch; None for the newest at the time of the download.
    """

    repository: str
    config: str | None = None
    revision: str | None = None

    @property
    def copy(self) -> Path:
        """Return the folder of the copy."""
        parts = (self.config or "default", self.revision or "main")
        return data_folder().joinpath("hub", *self.repository.split("/"), *(part.replace("/", "--") for part in parts))

    def check_names(self) -> None:
        """Raise BenchError if the hub can have no data set of this name, configuration or revision."""
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(self.repository)
        except HFValidationError as error:
            raise BenchError(
                f'task.hub = "{self.repository}" is no name of the hub (owner/name); a folder or a file is task.path'
            ) from error
        for key, value in (("config", self.config), ("revision", self.revision)):
            if value is not None and (not value or value.startswith(".")):
                raise BenchError(f'task.{key} = "{value}" is no name of the hub')

    def splits(self) -> dict[str, tuple[FileSignature, ...]]:
        """Return the files of each split, after comparing them with what came from the hub.

        Raises:
            NotPrepared: there is no copy.
            BenchError: the copy is damaged.
        """
        if not self.copy.is_dir():
            raise self._absent("`bench prepare` downloads it.")
        try:
            files: dict[str, str] = json.loads(content(self.copy / ORIGIN))["files"]
            known = {self.copy / name: str(sha256) for name, sha256 in files.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(self.copy, f"{ORIGIN} does not say where it is from ({error!r})") from error
        splits = user_tables.splits(self.copy)
        for path in (path for paths in splits.values() for path in paths):
            if content_sha256(path) != known.get(path):
                raise damaged(path, "it is not what came from the hub")
        return {name: tuple(map(signature, paths)) for name, paths in splits.items()}

    def fetch(self) -> None:
        """Ensure that the copy is there, downloading it if necessary.

        Of several processes that fetch at once one works and the others wait for it. One that is killed leaves nothing
        that counts.

        Raises:
            BenchError: the data set cannot be obtained, or the disk refuses.
        """
        if self.copy.is_dir():
            return
        name = "-".join(self.copy.relative_to(data_folder()).parts)
        with locked(data_folder() / f".{name}.lock"):
            if not self.copy.is_dir():  # another process may have been at it
                self._bring()

    def _bring(self) -> None:
        try:
            splits, revision = hub_splits(self.repository, self.config, self.revision)
        except Exception as error:  # of four libraries; whichever it is, there is no data
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise self._absent(f"it could not be downloaded ({reason}).") from error
        temporary = self.copy.with_name(f".{self.copy.name}.tmp")
        with writing(self.copy):
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            try:
                temporary.mkdir(parents=True)
                for name, split in splits.items():
                    split.save_to_disk(temporary / str(name))
                files = {
                    str(path.relative_to(temporary)): content_sha256(path)
                    for paths in user_tables.splits(temporary).values()
                    for path in paths
                }
                origin = {
                    "repository": self.repository, "config": self.config, "revision": revision, "files": files
                }  # fmt: skip
                (temporary / ORIGIN).write_text(to_json(origin), encoding="utf-8")
                # The renaming comes last: a folder with this name is complete.
                os.rename(temporary, self.copy)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _absent(self, reason: str) -> NotPrepared:
        asked = [f'"{self.repository}"']
        asked += [f"{key} {value}" for key, value in (("config", self.config), ("revision", self.revision)) if value]
        return NotPrepared(
            f"the data set {', '.join(asked)} of the hub is not in {data_folder()}: {reason}\n"
            "To get it in another way, run `bench prepare` with the same experiment where there is a network, and\n"
            f"bring {self.copy.relative_to(data_folder())}/ out of that machine's data folder into this one's; or save "
            "it there with\nDataset.save_to_disk, and name the folder with task.path instead of task.hub."
        )
