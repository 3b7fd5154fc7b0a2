"""The C interface: what compiled code may `cimport` from pagehint. `_core.pxd` says how."""
from pagehint._core cimport (E_ABSENT, E_ALIGN, E_FREE, E_INSIDE, E_NOMEM, E_NO_ZONE, E_SIZE, E_WITHHELD, How,
                             MT_MOVABLE, MT_RECLAIMABLE, MT_UNMOVABLE, Machine, OK, PAGEHINT_HINT_SIGNATURE,
                             PageAllocator, PageHintingCallbacks, WAIT, Zone, machine_alloc, machine_alloc_bulk,
                             machine_free, machine_free_bulk, pagehint_block, pagehint_hint_fn)
