"""Output directories that grow with their input: each shard is made once, and again only if its input changes.

A finished directory keeps the result of each shard in `.shards.jsonl`. How a later run adds to it, although it may be
killed at any instant:

- The old manifest stays until the new one replaces it, so that whoever reads the directory finds it complete, for hours
  if there is much to add. Only if a shard that it lists must be written again, because its input changed, is the
  manifest removed first: nobody may read a shard that is not the one in the manifest.
- `.progress/reused.jsonl` has the results that this run uses again, and `.progress/reused-rejects.jsonl` their rejects.
  They are copies, because `.shards.jsonl` and `rejects.jsonl` are replaced before the manifest. A result that does not
  apply any more is not in it, so it does not come back when a file does.
- The claim is written after them. From then on `.progress` alone says what is done, also if the input changes once more
  before the run ends.
- Shards whose input is gone are deleted after the new manifest is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import IO, Any

from loguru import logger

from ml_filter.documents.finished import ShardResult, from_lines, to_lines
from ml_filter.documents.manifest import PROGRESS_NAME, REJECTS_NAME, Manifest, Parent, digest_of, find_manifest
from ml_filter.documents.output_directory import CLAIM, MADE_WITH, SHARD_DIRECTORY, OutputDirectory
from ml_filter.errors import InputError

_RESULTS = ".shards.jsonl"
_REUSED = f"{PROGRESS_NAME}/reused.jsonl"
_REUSED_REJECTS = f"{PROGRESS_NAME}/reused-rejects.jsonl"
_BLOCK = 2**20


class GrowingDirectory(OutputDirectory):
    """An output directory whose input may change between runs. After it is entered, call `reuse`.

    Args:
        fixed: those parents that may not change; they and the settings name the directory.
        options: see OutputDirectory.
    """

    def __init__(self, *arguments: Any, fixed: Iterable[Parent] = (), **options: Any) -> None:
        super().__init__(*arguments, fixed=fixed, **options)
        self.inputs = _inputs_of(self.parents)
        """A digest of the input."""
        self._earlier: Manifest | None = None
        self._states: Mapping[str, str] | None = None
        self._reused: dict[str, ShardResult] | None = {} if self._is_helper else None
        self._reused_rejects: IO[bytes] | None = None

    # --- Beginning ---------------------------------------------------------------------------------------------------

    def _begin(self, manifest: Manifest | None, claim: Mapping[str, str]) -> None:
        if manifest is None and not claim:
            self._remove(_REUSED)
            self._put_claim()
        self._earlier = manifest
        # A run with other input may have replaced the files beside the manifest before it was killed.
        is_intact = claim.get("inputs", self.inputs) == self.inputs
        self.manifest = manifest if self._is_ours(manifest) and is_intact else None
        if self.is_complete and manifest is not None:
            total = (manifest.shards_new or 0) + (manifest.shards_reused or 0)
            self.manifest = manifest.model_copy(update={"shards_new": 0, "shards_reused": total})

    def _is_ours(self, manifest: Manifest | None) -> bool:
        return super()._is_ours(manifest) and manifest is not None and _inputs_of(manifest.parents) == self.inputs

    def _own_claim(self) -> dict[str, str]:
        return super()._own_claim() | {"inputs": self.inputs}

    def reuse(self, states: Mapping[str, str]) -> None:
        """Find the finished shards that need not be made again, and begin or continue the run.

        Args:
            states: by name, what each shard depends on beside the settings (`ShardResult.state`).
        """
        claim = self._read_claim()
        self._begin(find_manifest(self.path), claim)  # another part may have finished since this one entered
        if self.is_complete:
            return
        self._states = states
        if claim != self._own_claim():
            self._take_over(claim, states)
            self._put_claim()
        earlier = self._earlier.shards if self._earlier is not None else []
        names = {PurePosixPath(shard.path).stem for shard in earlier}
        if self._is_ours(self._earlier) or any(name in states for name in names - self._reused_results().keys()):
            self._remove_manifest()

    def _take_over(self, claim: Mapping[str, str], states: Mapping[str, str]) -> None:
        """Keep those results of the earlier run that apply to the new input."""
        earlier = self._earlier
        is_finished = earlier is not None and not earlier.shards_failed
        if earlier is not None and (not claim or (is_finished and claim.get("inputs") == _inputs_of(earlier.parents))):
            self._forget_all()  # what a kill after the manifest left
            results = from_lines((self.location / _RESULTS).find_bytes())
            if results:
                (self.location / PROGRESS_NAME).make_directory()
                self.fs.cp_file(self._at(REJECTS_NAME), self._at(_REUSED_REJECTS))
            if earlier.made_with:
                self.put_json(MADE_WITH, earlier.made_with)
        else:
            results = self._reused_results()
            for name in self._recorded():
                result = super().finished_shard(name)
                if result is not None and states.get(name) != result.state:
                    self.forget(name)
        sizes = self._sizes()
        self._reused = {
            name: result
            for name, result in results.items()
            if states.get(name) == result.state
            and result.failed is None
            and (result.shard is None or sizes.get(PurePosixPath(result.shard.path).name) == result.shard.bytes)
        }
        self.put_bytes(_REUSED, to_lines(self._reused.items()))

    def _reused_results(self) -> dict[str, ShardResult]:
        if self._reused is None:
            self._reused = from_lines((self.location / _REUSED).find_bytes())
        return self._reused

    # --- Shards ------------------------------------------------------------------------------------------------------

    def finished_shard(self, name: str) -> ShardResult | None:
        """The result of a shard that is finished for its present input; None: it is not."""
        result = super().finished_shard(name) or self._reused_results().get(name)
        is_current = result is None or self._states is None or self._states.get(name) == result.state
        return result if is_current else None

    def finished_shards(self, names: Iterable[str]) -> dict[str, ShardResult]:
        """The results of those shards that are finished for their present input, in the order of the names."""
        wanted, reused, states = list(names), self._reused_results(), self._states or {}
        present = super().finished_shards(wanted)
        results = ((name, present.get(name) or reused.get(name)) for name in wanted)
        return {name: r for name, r in results if r is not None and states.get(name, r.state) == r.state}

    # --- Ending ------------------------------------------------------------------------------------------------------

    def _append_rejects(self, name: str, result: ShardResult, target: IO[bytes]) -> None:
        if result.rejects_at is None:
            super()._append_rejects(name, result, target)
            return
        if self._reused_rejects is None:  # opened once: at a URL, that is a request
            self._reused_rejects = self.fs.open(self._at(_REUSED_REJECTS), "rb")
        self._reused_rejects.seek(result.rejects_at)
        for done in range(0, result.rejects_bytes, _BLOCK):
            target.write(self._reused_rejects.read(min(_BLOCK, result.rejects_bytes - done)))

    def finish(self, *arguments: Any, **options: Any) -> Manifest:
        """As OutputDirectory.finish.

        Raises:
            InputError: another run has begun with other input.
        """
        if self.find_manifest() is None and self._read_claim() != self._own_claim():
            raise InputError(
                f"the input of {self.path} changed while this ran, and another run has begun with the new one; run "
                "the same command again"
            )
        return super().finish(*arguments, **options)

    def _put_manifest(self, manifest: Manifest, results: Sequence[tuple[str, ShardResult]]) -> None:
        if self._reused_rejects is not None:
            self._reused_rejects.close()
        manifest.shards_reused = sum(result.rejects_at is not None for _, result in results)
        manifest.shards_new = len(results) - manifest.shards_reused
        if manifest.shards_reused:
            logger.info(f"{self.path}: new shards: {manifest.shards_new:,}, reused: {manifest.shards_reused:,}")
        place, placed = 0, []
        for name, result in results:
            placed.append((name, result.model_copy(update={"rejects_at": place})))
            place += result.rejects_bytes
        self.put_bytes(_RESULTS, to_lines(placed))
        super()._put_manifest(manifest, results)

    def _clean_up(self) -> None:
        assert self.manifest is not None
        listed = {PurePosixPath(shard.path).name for shard in self.manifest.shards}
        for name in self._sizes().keys() - listed:
            with suppress(FileNotFoundError):
                self.fs.rm_file(self._at(f"{SHARD_DIRECTORY}/{name}"))
        self._forget_all()  # before the claim, which is all that says what they belong to
        super()._clean_up()

    def _sizes(self) -> dict[str, int]:
        """The size of each output shard, by the name of its file."""
        directory = self._at(SHARD_DIRECTORY)
        self.fs.invalidate_cache(directory)
        try:
            return {PurePosixPath(info["name"]).name: info["size"] for info in self.fs.ls(directory, detail=True)}
        except FileNotFoundError:
            return {}

    def _recorded(self) -> list[str]:
        """The names of the shards that have a record in `.progress`."""
        files = {PurePosixPath(path).name for path in self._progress_files()}
        return [
            name[:-5]
            for name in files
            if name.endswith(".json") and f"{PROGRESS_NAME}/{name}" not in (CLAIM, MADE_WITH)
        ]

    def _forget_all(self) -> None:
        """Delete everything in `.progress` about shards."""
        paths = [path for path in self._progress_files() if path.endswith((".json", ".jsonl"))]
        if paths := [path for path in paths if not path.endswith(CLAIM)]:
            with suppress(FileNotFoundError):
                self.fs.rm(paths)


def _inputs_of(parents: Iterable[Parent]) -> str:
    return digest_of([parent.digest for parent in parents])
