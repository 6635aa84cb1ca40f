"""Tune a language model on instruction data: tokens, training, export, figures, pages and, last, tuning.json."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loguru import logger

from ml_filter.commit import code_commit
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.hub import hub_api
from ml_filter.documents.lineage import ancestors, find_source_manifest
from ml_filter.documents.lock import WriterLock
from ml_filter.documents.manifest import Parent, digest_of
from ml_filter.documents.output_directory import with_digest
from ml_filter.documents.readers import InputShard
from ml_filter.documents.sources import list_shards
from ml_filter.downstream.tuning.base import Base, find_base, load_libraries, load_tokenizer
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.downstream.tuning.data import HELD_OUT_FILE, REJECTS_FILE, TRAINED_ON_FILE, write_tokens
from ml_filter.downstream.tuning.result import (
    CARD_NAME,
    GGUF_NAME,
    MODEL_DIRECTORY,
    REPORT_NAME,
    TUNING_NAME,
    Ancestor,
    TunedModel,
    TuningResult,
    read_tuned,
    training_settings,
)
from ml_filter.errors import InputError
from ml_filter.heads.trained import file_digests, head_files
from ml_filter.location import Location, local_copy, write_atomically

_SCRATCH = ".tuning"
_SAVING = ".saving-"


def tune_model(data: SourceConfig, config: TuneConfig, output: str | Path) -> TunedModel:
    """Tune a model and write it to `output`, a directory or URL; a killed run resumes.

    Args:
        data: rows of messages, Alpaca triples or preference pairs, as `data.conversation_of` knows them.
        config: base, method, data and training settings; `push` uploads the result to the Hub.
        output: `{digest}` stands for a digest of settings and input.

    Raises:
        InputError: the base or the data cannot be used, or `output` has another model.
        ConfigError: the extra `tune` is not installed, there is no token to upload with, or the tokenizer cannot be
            used.
    """
    load_libraries()
    if config.push is not None:
        hub_api(config.push)  # first, so that a missing token costs no work
    base = find_base(config.base)
    shards, parents = list_shards(data)
    columns = data.model_dump(mode="json", exclude={"paths"})
    digest = digest_of([training_settings(config), base.digest, columns, [parent.digest for parent in parents]])
    location = Location(with_digest(output, digest))
    done = read_tuned(str(location)).result if (location / TUNING_NAME).exists() else None
    if done is not None and done.config_digest != digest:
        raise InputError(f"{location} already has a model with other data or settings; choose another --output")
    if done is None or not _is_presented(done, base, config):
        names = [] if done is None else [*done.files, TUNING_NAME]
        with _working_directory(location, names, digest) as target:
            for leftover in target.glob(f"{_SAVING}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            if not (target / TUNING_NAME).exists():
                _tune(base, data, shards, parents, config, target, digest)
            elif not _is_presented(result := read_tuned(target).result, base, config):
                _present(result, base, config, target)
    model = read_tuned(str(location))
    if config.push is not None:
        from ml_filter.downstream.tuning.push import push_tuned

        push_tuned(model, config.push, private=config.private)
    return model


def _tune(
    base: Base,
    data: SourceConfig,
    shards: list[InputShard],
    parents: list[Parent],
    config: TuneConfig,
    target: Path,
    digest: str,
) -> None:
    from ml_filter.downstream.tuning.export import export_model
    from ml_filter.downstream.tuning.loss import held_out_figures
    from ml_filter.downstream.tuning.train import train

    started = time.process_time()
    scratch = target / _SCRATCH / digest[:12]  # what a killed run with other settings has left is not used
    scratch.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(base, config)
    summary = write_tokens(shards, data, config, tokenizer, scratch, base.trained_on)
    training = train(base, tokenizer, config, scratch, started)
    with tempfile.TemporaryDirectory(prefix=_SAVING, dir=target) as directory:
        saving = Path(directory)
        export_model(base, tokenizer, config, training.checkpoint, saving)
        for name in (REJECTS_FILE, TRAINED_ON_FILE):
            shutil.copyfile(scratch / name, saving / name)
        figures = held_out_figures(base.directory, saving / MODEL_DIRECTORY, scratch / HELD_OUT_FILE, config)
        files = file_digests(saving)
        _move(saving, target)
        result = TuningResult(
            config_digest=digest,
            config=config,
            base=base.parent,
            base_license=base.license,
            source=data,
            parents=parents,
            lineage=_lineage(parents),
            data=summary,
            figures=figures,
            history=training.history,
            cpu_seconds=training.earlier_seconds + time.process_time() - started,
            files=files,
            commit=code_commit(),
        )
    _present(result, base, config, target)
    shutil.rmtree(target / _SCRATCH, ignore_errors=True)
    logger.info(f"Saved the tuned model to {target}")


def _is_presented(result: TuningResult, base: Base, config: TuneConfig) -> bool:
    """Whether what a finished directory has beside its weights is as configured."""
    has_gguf = GGUF_NAME in result.files or not config.gguf or base.gguf is None
    return has_gguf and (result.config.license, result.base_license) == (config.license, base.license)


def _present(result: TuningResult, base: Base, config: TuneConfig, target: Path) -> None:
    """Write what can be made of the weights at any time: GGUF, card, report and, last, `tuning.json`.

    So a corrected license does not train again. The curves stay as they were recorded.
    """
    from ml_filter.downstream.tuning.export import export_gguf
    from ml_filter.downstream.tuning.pages import write_card, write_report

    result = result.model_copy(
        update={
            "config": config.model_copy(update={"log_steps": result.config.log_steps}),
            "base_license": base.license,
        }
    )
    with tempfile.TemporaryDirectory(prefix=_SAVING, dir=target) as directory:
        saving = Path(directory)
        if config.gguf and base.gguf is not None and GGUF_NAME not in result.files:
            export_gguf(base.gguf, target / MODEL_DIRECTORY, saving / GGUF_NAME)
        result.files = result.files | file_digests(saving)
        (saving / CARD_NAME).write_text(write_card(result))
        (saving / REPORT_NAME).write_text(write_report(result))
        result.files |= file_digests(saving)
        _move(saving, target)
    write_atomically(target / TUNING_NAME, result.to_json())


def _move(saving: Path, target: Path) -> None:
    for file in head_files(saving):
        file.chmod(0o644)
        (Location(target) / file.relative_to(saving).as_posix()).move_here(file)


def _lineage(parents: list[Parent]) -> list[Ancestor]:
    """The directories that the data was made from, as far as they still exist unchanged."""
    manifests = [find_source_manifest(parent.path) for parent in parents]
    return [
        Ancestor(kind=ancestor.kind, path=ancestor.root, digest=ancestor.digest)
        for manifest in manifests
        if manifest is not None
        for ancestor in ancestors(manifest)
    ]


@contextmanager
def _working_directory(location: Location, names: Sequence[str], digest: str) -> Iterator[Path]:
    """A local directory for the model, locked against a second writer; that of a URL is uploaded at the end.

    Args:
        names: the files that are already at the URL.
    """
    cache = Settings().cache_dir.expanduser() / "tuned" / digest_of([str(location), digest])[:32]
    directory = location.local if location.is_local else cache
    if location.is_local:
        location.make_directory()
    directory.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(directory, str(location), ".parts", part=None)
    lock.begin()
    try:
        if not location.is_local:
            with local_copy(location, names) as copy:
                _move(copy, directory)
        yield directory
        if not location.is_local:
            for file in [*(f for f in head_files(directory) if f.name != TUNING_NAME), directory / TUNING_NAME]:
                (location / file.relative_to(directory).as_posix()).copy_here(file)
    finally:
        lock.release()
    if not location.is_local:
        shutil.rmtree(directory, ignore_errors=True)
