"""Reasons why a remedy has no world here; some are followed in the tests of their modules."""

from __future__ import annotations

from typing import Final

_REASONS: Final[dict[str, tuple[str, ...]]] = {
    "needs an old bash; tests/cli/manual/test_completion.py has a program that says it is one": (
        "cli/manual/completion.py:_check_bash: install a newer bash, or use zsh or fish",
    ),
    "needs a disk that fails in the middle of a run": (
        "training/run/run_state.py:RunState.save: {}, then the same with resume='auto'",
        "training/run/run_state.py:_unsaved: check the disk",
    ),
    "is the way out in a sentence that refuses nothing; tests/store/schema/test_task.py reads it": (
        "store/schema/task.py:label_line: {}task=",
        "store/schema/task.py:label_line: {} (task={}{})",
    ),
    "needs a record that is damaged, or cannot be read; tests/comparison/test_resume.py has some": (
        "comparison/record.py:is_comparison: another out=",
        "comparison/record.py:read_record: another out=",
        "comparison/record.py:finished_run: another out=",
        "comparison/record.py:_read_path: another out=",
        "comparison/run.py:ObservedRunFolder.resume_from: another out=",
    ),
    "is given with the rate by the trainer: training/step_errors.py:name_rate": (
        "optim/gradients.py:non_finite_error: a smaller lr=, or normalized inputs",
    ),
    "is about values that a user's own transform makes: tests/training/test_step_errors.py": (
        "training/step_errors.py:name_bad_samples: leave these samples out, or mend their values where they are made",
    ),
    "needs a run's folder that goes while it is trained": (
        "training/run/run_folder.py:RunFolder._check_still_there: another checkpoint=",
    ),
    "needs a dataset of half the memory": ("ingestion/request.py:warning_of_memory: a folder on a disk",),
    "needs NFS and another user; followed in `test_lock.py`": (
        "store/writing/lock.py:_flock: delete it if nobody writes there",
    ),
    "needs workers of a cluster; tests/ingestion/cluster has some": (
        "ingestion/cluster/cluster_shards.py:check_workers: wait until it is free, or restart it",
        "ingestion/cluster/cluster_shards.py:check_workers: give every worker the same versions and the same file "
        "systems, at the same paths",
        "ingestion/cluster/cluster_shards.py:_Shards._result: workers with more memory, or see why in their logs",
        "ingestion/cluster/cluster_shards.py:_Shards._result: see the worker's log",
        "ingestion/cluster/cluster_shards.py:_lost: start it again",
        "ingestion/cluster/connection.py:_sizes: memory={}",
        "ingestion/cluster/connection.py:_check_limits: memory={}",
        "ingestion/cluster/connection.py:_unreachable: check the address",
        "ingestion/cluster/connection.py:_unreachable: start one there (dask scheduler), or check the address",
        "ingestion/cluster/connection.py:no_worker: start some: dask worker ADDRESS",
        "ingestion/cluster/portable.py:check_scheduler: Client(address), without asynchronous=True",
    ),
    "needs a script of its own; tests/ingestion/cluster has one": (
        'ingestion/cluster/connection.py:_processes: put what is to run once under if __name__ == "__main__":',
    ),
    "installs a package": (
        "ingestion/cluster/portable.py:library: pip install 'streamtrain[cluster]'",
        "diagnostics/profile_charts.py:check_can_draw: pip install 'streamtrain[plot]', or png=False",
        "diagnostics/history_plot.py:plot: pip install 'streamtrain[plot]'",
        "ingestion/sources/tables/arrow.py:arrow: pip install 'streamtrain[arrow]'",
        "store/media/pillow.py:pillow: pip install 'streamtrain[image]'",
    ),
    "the tests run as root, whom no permission keeps out": (
        "errors.py:remedy: give this user the permission (chmod, chown)",
        "models/user_code.py:_read: give this user the permission, or another file",
    ),
    "arrays whose columns have names come from data frames, which the tests do not install": (
        "ingestion/append.py:check_columns: give the same columns, in that order",
        "ingestion/sources/tables/frames.py:_pandas_frame: make the column one of numbers or text",
        "ingestion/sources/column_names.py:column_order: give the same columns, in any order",
    ),
    "needs an image of 179 million pixels": ("ingestion/sources/images/image_check.py:_header: make it smaller",),
    "needs a stored image that does not decode; tests/loader/test_images.py makes one": (
        "loader/decode/delivery.py:damaged_sample: restore it from a copy, or ingest again",
    ),
    "needs a damaged block; followed in tests/loader/test_quarantine.py": (
        "comparison/run.py:_RunTracker._epoch: restore it from a copy, or ingest again",
        "loader/quarantine.py:telling_of_quarantine: restore it from a copy, or ingest again; or train with {}, which "
        "leaves its samples out",
    ),
    "needs a folder that nobody can read": (
        "ingestion/sources/images/class_folders.py:_listed: copy it to another disk",
        "loader/decode/image_files.py:_unreadable: write or download it again, or leave it out",
    ),
    "needs a file that changes while it is read": (
        "ingestion/sources/images/class_folders.py:ImageFolder._bytes: ingest again when nothing writes to it",
        "ingestion/write_dataset.py:checked_statistics: ingest again when nothing writes to it",
        "ingestion/write_dataset.py:checked_statistics: give at least one row",
        "ingestion/sources/tables/table_columns.py:TableSource._changed: ingest again when nothing writes to it",
        "ingestion/sources/tables/roles/role_table.py:RoleTable._changed: ingest again when nothing writes to it",
    ),
    "needs a disk that fails otherwise than by being full": (
        "ingestion/resume.py:_then_resume: check the disk, then the same ingest with resume=True: {}",
        "system/refusals.py:_explained: check the disk, or choose another",
    ),
    "needs an array that lies about its shape": (
        "ingestion/sources/arrays.py:_rows_of: correct the shape that the array claims",
    ),
    "needs a sparse matrix made to do harm": ("ingestion/sources/sparse.py:_broken: build it again",),
    "needs labels that change while they are read": (
        "ingestion/sources/text_labels.py:TextLabels.__getitem__: ingest again when nothing writes to it",
    ),
    "is for who writes a plug-in": (
        "ingestion/sources/base.py:check_source: correct the plug-in, or install a newer version of it",
    ),
    "needs a header made to do harm": (
        "ingestion/sources/binary.py:packing_of: check that the file is what its name says",
    ),
    "is a recipe for files of other programs; `tests/test_messages.py` runs them": (
        "ingestion/sources/recognition/recipes.py:recipe: in Python, {}",
        'ingestion/sources/recognition/recipes.py:class_folders_recipe: {}import numpy, pathlib, PIL.Image, streamtrain as st; paths = sorted(pathlib.Path({}).glob("*/*")); names = sorted({path.parent.name for path in paths}); st.ingest(({"x": numpy.asarray(PIL.Image.open(path).convert("RGB").resize((64, 64)))[None], "y": numpy.array([names.index(path.parent.name)])} for path in paths), "data.zarr", classes=names)',
    ),
    "needs an archive of gigabytes of zeros": (
        "ingestion/sources/compressed.py:check_ratio: store it uncompressed if it is meant",
    ),
    "an archive's directory tells of the length before": (
        "ingestion/sources/compressed.py:_check_end: write or download the file again",
    ),
    "needs an archive of gigabytes": (
        "ingestion/sources/compressed.py:_check_reread: save it row by row, np.ascontiguousarray(x), or as a plain .npy, or allow more memory",
    ),
    "needs an archive made to do harm": ("ingestion/sources/compressed.py:_check_overlap: do not use this file",),
    "needs an archive with a password, which Python cannot write": (
        "ingestion/sources/compressed.py:_check_member: write the archive without a password",
    ),
    "needs a disk that fails to read": (
        "ingestion/sources/input_files.py:check_file: copy it to another disk",
        "ingestion/sources/recognition/folders.py:files_in: copy it to another disk",
        "store/byte_ranges.py:unreadable: restore it from a copy, or ingest again",
        "store/writing/journal.py:read_journal: restore it from a copy, or ingest again",
        "training/run/checkpoint.py:_unreadable: train again",
        "training/run/run_folder.py:RunFolder.why_not_after: another checkpoint=",
        "training/run/run_folder.py:is_run: another checkpoint=",
        "training/run/run_folder.py:_read_scores: another checkpoint=",
        "training/run/checkpoint.py:_is_there: train again",
        "training/run/checkpoint.py:_identity: train again",
        "ingestion/sources/input_files.py:reading: copy it to another disk",
        "ingestion/sources/tables/parquet.py:reading_parquet: copy it to another disk",
    ),
    "needs a plug-in that is installed": (
        "ingestion/sources/recognition/formats.py:_plugin: install a newer version of the plug-in, or what it needs",
    ),
    "needs a text that only Arrow refuses": (
        "ingestion/sources/tables/delimited.py:_unreadable: write the file again",
    ),
    "needs a footer that lies about its rows": ("ingestion/sources/tables/parquet.py:_probe: write the file again",),
    "needs a limit on the memory of the process": (
        "system/buffers.py:aligned_bytes: a smaller memory=, or a higher limit",
    ),
    "needs memory that fails": ("diagnostics/doctor.py:_decoder.once: test the machine's memory",),
    "cuts the text of a chart, and is no remedy": ("diagnostics/charts.py:printable: {}…",),
    "needs limits of the machine that only its administrator changes": (
        "system/refusals.py:_explained: end processes that hold files open, or raise fs.file-max",
        "system/refusals.py:_open_files_explained: close some of the process's files",
        "system/refusals.py:_open_files_explained: raise the limit to {} where it is set (such as limits.conf)",
    ),
    "needs a network disk that fails": ("system/refusals.py:_explained: check the network disk, such as its mount",),
    "needs a GPU": (
        "loader/device/cuda.py:_HostLocking._lock_no_more: pool='device', which copies least",
        "loader/device/memory_terms.py:fit_to_device: memory={}{}",
        "loader/device/resolve.py:_explained: a build of torch for it, or device='cpu'",
        "loader/device/resolve.py:_explained: end that process, another GPU, or device='cpu'",
        "loader/device/resolve.py:_explained: look at the driver (nvidia-smi), or device='cpu'",
        "loader/device/transfer.py:Placement.__post_init__: one of {}",
        "loader/device/transfer.py:DeviceTransfer._check_dtypes: batches on the CPU (device='cpu') with a transform that casts it, or data of float32",
        "loader/device/transfer.py:DeviceTransfer._admit: look at what the device does (nvidia-smi), or wait longer: timeout=",
        "loader/device/transfer.py:DeviceTransfer._too_small: {} or pool='host'",
        "loader/device/transfer.py:DeviceTransfer._too_small: {} or a smaller batch_size=",
        "training/batch_stream.py:warn_of_waiting_device: device='cpu'",
        "training/batch_stream.py:warn_of_waiting_device: a StreamLoader with device={}, which brings them ahead",
        "training/step_errors.py:explain_device: batch_size={}{}",
        "training/step_errors.py:explain_device: a smaller model{}, or device='cpu'",
    ),
    "is followed in tests/ingestion/sources/hierarchies, with h5py hidden": (
        "ingestion/sources/hierarchies/hdf5.py:h5py: pip install 'streamtrain[hdf5]'",
    ),
    "needs a dtype that NumPy does not have": (
        "ingestion/sources/hierarchies/hdf5.py:_dtype_of: store it as float64, or as integers",
    ),
    "needs a disk that gives other bytes; tests/ingestion/sources/hierarchies has one": (
        "ingestion/sources/hierarchies/over_disk.py:RowsOverDisk._read: check the disk, and ingest again",
    ),
    "needs a file of 100,000 objects": (
        "ingestion/sources/hierarchies/hdf5.py:_walk: copy what you need into a file of its own: h5copy",
    ),
    "needs two threads that meet at a moment": (
        "loader/reading/pool.py:Pool.next_span: close it when no one iterates it",
    ),
    "needs a machine without free memory": (
        "loader/shared_budget.py:require_rehearsal: a smaller model, or free memory: {} in all would do",
        "system/refusals.py:_explained: end other processes, or a smaller memory=",
        "loader/shared_budget.py:loader_budget_bytes: free memory; {} in all would do",
    ),
    "needs a GPU, whose batches take more than the loaders were checked for": (
        "loader/shared_budget.py:make_val_loader: {} or more, or no val=",
    ),
    "needs the state of an earlier release": (
        "loader/loader_state.py:_in_this_order: finish that epoch with the release that began it, or begin a new run",
    ),
    "needs a forked process": ("loader/reading/workers.py:Workers.check_process: make one in the child, or spawn it",),
    "needs a disk that hangs": (
        "loader/reading/workers.py:Deadline._stalled: look at the disk, or wait longer: timeout=",
    ),
    "needs several processes": (
        "loader/world.py:warn_of_ranks: torch.distributed.init_process_group() before the first epoch, or rank= and world_size=",
        "loader/stream_loader.py:StreamLoader._take_rank: make or leave the process group between two epochs",
    ),
    "needs a machine without a compiler, or minutes of compiling": (
        "models/forward.py:_Explained.__call__: train without it: compile=False",
        "models/forward.py:_Explained.__call__: install one, or train without it: compile=False",
    ),
    "needs a device without float64": ("optim/gradient_sum.py:GradientSum._begin: grad_sum_dtype='compensated'",),
    "needs a checkpoint of an earlier release": (
        "optim/sample_fast_path/choice.py:SamplePathChoice._cannot_resume: train as it was trained, or another checkpoint=",
    ),
    "needs a manifest forged together with its digests": (
        "store/dataset.py:_other_id: restore it from a copy, or ingest again",
        "store/manifest.py:parse_manifest: restore it from a copy, or ingest again",
        "store/manifest.py:read_categories: restore it from a copy, or ingest again",
        "store/manifest.py:check_manifest: restore it from a copy, or ingest again",
        "store/manifest.py:_check_description: restore it from a copy, or ingest again",
        "store/manifest.py:_check_claim: restore it from a copy, or ingest again",
    ),
    "needs text classes in one dataset and numbers in the other": (
        "store/schema/matching.py:_numbers_difference: ingest both in the same way",
    ),
    "is a part of the remedies that name columns": (
        "store/schema/matching.py:named_in_order: {} named in the other's order",
    ),
    "needs a file that changes between two reads": (
        "store/shard.py:ShardReader._read_index: restore it from a copy, or ingest again",
    ),
    "needs a disk that stores other bytes than it was given": (
        "store/shard.py:_ShardReadBack._named: restore it from a copy, or ingest again",
    ),
    "needs a shard that is whole, and whose blocks were moved inside it": (
        "store/verify.py:_shard_damage: restore it from a copy, or ingest again",
    ),
    "is for a metric of the user's own; `test_monitor.py` follows it": (
        "training/best/monitor.py:choose_monitor: monitor_mode='max', or monitor_mode='min'",
    ),
    "needs a writer killed between two renames, and a file put in its place": (
        "store/verify.py:remove_leftovers: move it away, then streamtrain.repair({})",
    ),
    "needs a lock file of another user": ("store/writing/lock.py:_of_dead_writer: delete it if nobody writes there",),
    "needs a file system without locks": (
        "store/writing/lock.py:_flock: write to a disk with file locks (flock), such as a local one, and copy what was written from there",
    ),
    "needs a writer killed between two renames, and a link put in its place": (
        "store/writing/staging.py:remove_dataset: move it away",
    ),
    "needs a folder of another user": (
        "store/writing/staging.py:recover_interrupted_swap: streamtrain.repair({}), as a user who may write there",
    ),
    "is a size in other remedies": ("system/units.py:megabytes: {}MB",),
    "no dataset holds complex numbers: it needs a stream of the user's own": (
        "training/batch_stream.py:check_weight_field: floats or integers",
    ),
    "needs a checkpoint of another release": ("training/run/checkpoint.py:_checked: the matching release",),
    "is shown in the tests of `evaluate`, with a run that lacks it": (
        "training/inference/saved_run.py:normalize_modules: train again",
    ),
    "needs a model of gigabytes": (
        "comparison/surface.py:n_snapshots: fewer rules or optimizers, a smaller model, or no surface",
    ),
    "two files of one format cannot name classes that differ": (
        "ingestion/sources/combine.py:_with_classes: ingest them apart",
    ),
    "a folder is listed before; needs one that is made meanwhile": (
        "ingestion/sources/input_files.py:check_file: give a file in it",
    ),
    "needs statistics that no stored values have": (
        "models/normalization.py:normalize_field: normalize={}, and rescale in the model",
        "models/target_normalization.py:normalize_target: normalize_target={}",
    ),
    "needs gradients at the edge of float32": (
        "optim/gradients.py:check_finite_sum: grad_sum_dtype='float64', or a loss of another scale",
    ),
    "the weights of a batch are refused with their samples before": (
        "optim/gradients.py:check_least_weight: weights of at least 0",
    ),
    "labels out of range are refused before the first step": (
        "optim/sample_fast_path/network.py:_one_hot: labels from 0 to {}",
    ),
    "a damaged checkpoint is skipped with its digest before its state is read": (
        "training/run/checkpoint.py:Checkpoint.tensors: train again",
        "training/run/serialization.py:unpack: train again",
        "training/run/serialization.py:check_like: train again",
        "training/run/checkpoint.py:_read_state: train again",
        "training/best/monitor.py:best_of: train again",
        "training/run/run_state.py:RunState._put_back: another checkpoint=",
        "models/normalization.py:NormalizedModel.put_back: train again",
    ),
    "categories and dates are followed in the tests of their modules": (
        "ingestion/sources/tables/categories.py:CategorySurvey._too_many: {}, or {} or more",
        "ingestion/sources/tables/categories.py:_check_type: store it as text",
        "ingestion/sources/tables/categories.py:_has_fractions: leave it to the features, which are numbers; or round it, "
        "or name its ranges, in the source",
        "ingestion/sources/tables/dates.py:zone_of: did you mean timezone={}?",
        "ingestion/sources/tables/dates.py:zone_of: timezone='UTC'",
        "ingestion/sources/tables/dates.py:_check_type: if it holds numbers, leave it among the features: numbers "
        "need no conversion",
        "ingestion/sources/tables/dates.py:_not_iso: correct the value, or write the column in this form",
        "ingestion/sources/tables/dates.py:_other_form: write all of them in the same form",
        "ingestion/sources/tables/dates.py:_no_moment: write the offset from UTC after the time, such as +01:00; or, where "
        "the times are UTC, name that zone",
    ),
    "needs several processes, which tests/training/test_ranks.py and tests/cli/test_ranks.py start": (
        "cli/ranks.py:does_nothing: start it without torchrun; --rows gives each of several processes rows of its own",
        "cli/ranks.py:does_nothing: start it without torchrun",
        "cli/ranks.py:process_group: export MASTER_PORT=29500, the same for all ranks",
        "cli/train.py:_run_train: start it without torchrun, or no --headspace",
        "cli/ranks.py:_named_where_late: see what the others say",
        "optim/ranks/exchange.py:RankExchange._failure: its own output tells more; then resume the run",
        "optim/ranks/exchange.py:refuse_sparse: sparse=False where the layers are made",
        "training/ranks.py:join_ranks: update='batch'",
        "training/ranks.py:_refuse_empty_share: another batch_size=, or a loader that drops the last batch",
        "training/fitting.py:Fitting._saving_what_is_whole: {}the last whole step is in {}",
        "training/ranks.py:_refuse_empty_share: on_bad_block='error'",
        "training/ranks.py:check_ranks: the same command, data and versions on every rank",
        "training/ranks.py:_check_memory_together: memory={} for each rank",
        "training/ranks.py:_warn_of_batch_norm: torch.nn.SyncBatchNorm on GPUs, another normalization, or a larger "
        "batch_size",
        "training/run/run_state.py:_put_stream_back: {} or {} ranks",
        "training/run/run_state.py:_put_stream_back: one process",
        "optim/rules.py:BatchRule._exchanged: see what is said there",
        "comparison/compare.py:_check_datasets: compare in one of its own",
    ),
    "needs a stream of the user's own": ("training/run/run_state.py:RunState._put_back: a StreamLoader",),
    "needs an optimizer of the user's own, with a state of odd objects": (
        "training/run/serialization.py:pack.packed: tensors, numbers, texts, and lists and dicts of them",
    ),
}
REASONS: Final = {key: reason for reason, keys in _REASONS.items() for key in keys}
"""A remedy's key -> why it is not followed here."""
