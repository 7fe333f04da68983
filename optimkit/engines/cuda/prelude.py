"""What stands at the head of every module of CUDA kernels: types, tables, and the access to arrays."""

from __future__ import annotations

from optimkit.arrays import DTYPES, DType
from optimkit.engines.canonical import UNIT
from optimkit.engines.cuda.job import entry_text, job_text
from optimkit.engines.tables import Entry

_HEAD = """\
typedef long long word;
{entry}
{job}
typedef {real} real;
struct alignas(16) Pack {{ real x[{lanes}]; }};
"""

_FUNCTIONS = """\
template <class T> __device__ __forceinline__ T minimum_of(T a, T b) { return (a < b || a != a) ? a : b; }
template <class T> __device__ __forceinline__ T maximum_of(T a, T b) { return (a > b || a != a) ? a : b; }
template <class T> __device__ __forceinline__ T sign_of(T a) {
    return a != a ? a : (a > 0 ? (T)1 : (a < 0 ? (T)-1 : (T)0));
}
template <class T> __device__ __forceinline__ bool is_finite(T a) { return a - a == 0; }
__device__ __forceinline__ double count_power(double base, double count) {
    double result = 1.0, square = base;
    for (word bits = (word)fabs(count); bits; bits >>= 1) {
        if (bits & 1) result *= square;
        square *= square;
    }
    return count < 0 ? 1.0 / result : result;
}

// The address of element i of a strided array, in memory order of its weight.
__device__ __noinline__ char* strided(const word* layout, char* data, word i) {
    word axes = layout[AXES];
    for (word axis = axes - 1; axis >= 0; axis--) {
        data += (i % layout[LENGTHS + axis]) * layout[LENGTHS + axes + axis];
        i /= layout[LENGTHS + axis];
    }
    return data;
}
template <class T> __device__ __forceinline__ T* global(T* p) { __builtin_assume(__isGlobal(p)); return p; }
// Element i of an array of the compute dtype that may be strided.
__device__ __forceinline__ real* at(const word* entry, word bit, int layout, real* p, word i) {
    return global((entry[FLAGS] & bit) ? (real*)strided((const word*)entry[layout], (char*)p, i) : p + i);
}
"""

# A gradient that is strided, of another dtype, or both.
_GRADIENT = """\
__device__ __forceinline__ char* at_g(const word* entry, real* g, word i) {{
    const word dtype = entry[G_DTYPE];
    if (entry[FLAGS] & STRIDED_g) return global(strided((const word*)entry[g_layout], (char*)g, i));
    return global((char*)g + i * ({itemsize}));
}}
__device__ __forceinline__ real load_g(const word* entry, real* g, word i) {{
    const word dtype = entry[G_DTYPE];
    const char* p = at_g(entry, g, i);
    {load}
}}
__device__ __forceinline__ void zero_g(const word* entry, real* g, word i) {{
    const word dtype = entry[G_DTYPE];
    char* p = at_g(entry, g, i);
    {zero}
}}
"""


def _by_dtype(text: str, joint: str) -> str:
    """A text for each dtype, chosen by `dtype`; the last one without a question."""
    kinds = list(DTYPES.values())
    parts = [f"dtype == {kind.code} ? {text.format(cuda=kind.cuda, size=kind.itemsize)}" for kind in kinds[:-1]]
    return joint.join([*parts, text.format(cuda=kinds[-1].cuda, size=kinds[-1].itemsize)])


def prelude(columns: Entry, dtype: DType, uniforms: int, by_row: int, slots: int, by_value: int) -> str:
    """The head of a module for arrays of `dtype`, with so many uniform values and slots per parameter and values per row.

    A launch has room for `by_value` words of `moving`.
    """
    compute = DTYPES[dtype.compute]
    head = _HEAD.format(
        entry=entry_text(columns),
        job=job_text(by_value, columns, values=uniforms, by_row=by_row, slots=slots, unit=UNIT),
        real=compute.cuda,
        lanes=16 // compute.itemsize,
    )
    gradient = _GRADIENT.format(
        itemsize=_by_dtype("{size}", " : "),
        load=f"return {_by_dtype('(real)*(const {cuda}*)p', ' : ')};",
        zero="\n    ".join(f"if (dtype == {kind.code}) *({kind.cuda}*)p = 0;" for kind in DTYPES.values()),
    )
    return "\n".join([head, _FUNCTIONS, gradient])
