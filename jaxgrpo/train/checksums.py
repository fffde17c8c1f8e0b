"""What protects a checkpoint's arrays from damage on disk: a checksum in every stored chunk (of its JSON: seals.py).

Arrays go through Orbax as Zarr 3 arrays whose `zstd` codec ends every chunk in a checksum of its content (XXH64; the `crc32c`
codec would do the same for four times the time). The host that writes a chunk adds it, and TensorStore verifies it on every
read, of whichever part of the array, on whichever mesh. Chunks lie in OCDBT, whose manifests and tree nodes, which hold what is
smaller than 1 KiB, carry CRC-32C checksums of their own.
"""

import asyncio
from dataclasses import dataclass

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

CODECS = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "zstd", "configuration": {"level": 1, "checksum": True}},
]


class ChecksummedArrays(ocp.type_handlers.ArrayHandler):
    """Orbax's handler of jax.Array, but for what it writes: a chunk is one device's share of an array, with its checksum.

    Every replica of a replicated share writes that of some arrays, so that all hosts take part."""

    def __init__(self):
        super().__init__(enable_write_sharding_file=False, array_metadata_store=None)

    async def serialize(self, values, infos, args=None) -> list[ocp.Future]:
        """Copy this host's shares of `values` to its memory; what is returned writes them."""
        shares = [_shares(value, turn) for turn, value in enumerate(values)]
        for share in (share for of_one in shares for share in of_one):
            share.data.copy_to_host_async()
        on_host = [[(share.index, np.asarray(share.data)) for share in of_one] for of_one in shares]
        layouts = [(value.shape, value.sharding.shard_shape(value.shape), value.dtype) for value in values]

        async def write() -> None:
            await asyncio.gather(*map(_write, infos, layouts, on_host))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="checksummed_arrays")]

    async def deserialize(self, infos, args=None) -> list[jax.Array]:
        """As Orbax does; after a failure the other reads come to their end: each would complain of a closed event loop."""
        before = asyncio.all_tasks()
        try:
            return await super().deserialize(infos, args)
        except BaseException:
            await asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True)
            raise


def _shares(value: jax.Array, turn: int) -> list:
    """The shards of an array that this host writes."""
    shard = value.sharding.shard_shape(value.shape)
    replicas = max(1, value.sharding.num_devices * int(np.prod(shard)) // max(1, value.size))
    return [share for share in value.addressable_shards if share.replica_id == turn % replicas]


async def _write(info, layout, shares) -> None:
    await info.await_path_creation()
    shape, chunk, dtype = layout
    spec = ocp.type_handlers.get_json_tspec_write(
        info, use_ocdbt=True, global_shape=shape, local_shape=chunk, dtype=dtype, process_index=jax.process_index()
    )
    spec["metadata"]["codecs"] = CODECS
    first = jax.process_index() == 0  # it writes the array's description; the others know it
    array = await ts.open(spec, open=True, create=first, assume_metadata=not first, context=info.ts_context)
    # A chunk is the only writer of its part and its source does not change: no copy is needed.
    await asyncio.gather(*(array[index].write(data, can_reference_source_data_indefinitely=True) for index, data in shares))


class ArrayItem(ocp.PyTreeCheckpointHandler):
    def restore(self, *arguments, **options):
        """The arrays, or the error that reading them ended in. Damage may lie in what one host reads: were it raised here, that
        host would never come to the barrier behind, at which Orbax lets the others wait."""
        try:
            return super().restore(*arguments, **options)
        except Exception as error:  # Orbax itself raises the bare class
            return error


@ocp.args.register_with_handler(ArrayItem, for_save=True)
@dataclass
class SaveArrays(ocp.args.PyTreeSave):
    """A tree of jax.Array to be saved."""


@ocp.args.register_with_handler(ArrayItem, for_restore=True)
@dataclass
class RestoreArrays(ocp.args.PyTreeRestore):
    """A tree of jax.Array to be restored."""


def array_handler() -> ArrayItem:
    """Writes trees of jax.Array with checksums, and reads them as well as those written without, before there were any. What it
    restores goes through `raised`."""
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, ChecksummedArrays()))
    return ArrayItem(use_ocdbt=True, use_zarr3=True, type_handler_registry=registry)


def raised(restored):
    """What an `array_handler` restored; its error is raised."""
    if isinstance(restored, Exception):
        raise restored
    return restored
