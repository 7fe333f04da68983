"""Arrays: the one place that knows how the array libraries differ.

Everything else asks here: what library an array belongs to, what its dtype is, where its memory is and in which
order, and whether it may be written. `libraries` has a class for each library, `dtypes` a record for each dtype.

>>> import numpy as np
>>> describe(np.zeros((2, 3), np.float32))
'numpy array of shape (2, 3), float32'
"""

from optimkit.arrays.asking import (
    copy_of,
    describe,
    described,
    device,
    dtype_name,
    from_view,
    guarded,
    is_array,
    is_read_only,
    is_traced,
    library,
    namespace,
    on,
    view,
)
from optimkit.arrays.checks import check_dtype, check_readable, check_weight
from optimkit.arrays.dtypes import DTYPES, SUPPORTED, DType
from optimkit.arrays.fingerprints import UNSEEN, Fingerprint, Seen, fingerprint
from optimkit.arrays.libraries import Library, library_of, named, to_numpy
from optimkit.arrays.memory import (
    Placement,
    address,
    bounds,
    byte_strides,
    folds,
    has_memory,
    itemsize,
    overlap,
    unwritable_ranges,
)
from optimkit.arrays.order import MemoryOrder
from optimkit.arrays.streams import StreamOrder

__all__ = ["DTYPES", "SUPPORTED", "UNSEEN", "DType", "Fingerprint", "Library", "MemoryOrder", "Placement", "Seen"]
__all__ += ["address", "bounds", "byte_strides", "check_dtype", "check_readable", "check_weight", "copy_of", "describe"]
__all__ += ["described", "device", "dtype_name", "fingerprint", "folds", "from_view", "guarded", "has_memory", "is_array"]
__all__ += ["is_read_only", "is_traced", "itemsize", "library", "library_of", "named", "namespace", "on", "overlap"]
__all__ += ["StreamOrder", "to_numpy", "unwritable_ranges", "view"]
