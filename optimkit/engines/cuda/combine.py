"""What threads of a block, and blocks of a launch, do together, as CUDA text: trees of lanes, totals, who comes last."""

from __future__ import annotations

from optimkit.engines.canonical import LANES

COMBINE = f"""\
// What another block wrote: read from memory, not from this SM's cache.
template <class T> __device__ __forceinline__ T fresh(const T* p) {{ return *(const volatile T*)p; }}

// {LANES} lanes to one value, as a tree; every thread of the block gets it.
template <class F> __device__ double fold(double lane, double* tree, F merge) {{
    if (threadIdx.x < {LANES}) tree[threadIdx.x] = lane;
    __syncthreads();
    for (int half = {LANES // 2}; half; half >>= 1) {{
        if (threadIdx.x < half) tree[threadIdx.x] = merge(tree[threadIdx.x], tree[threadIdx.x + half]);
        __syncthreads();
    }}
    double result = tree[0];
    __syncthreads();
    return result;
}}
struct Add {{ __device__ double operator()(double a, double b) const {{ return a + b; }} }};
struct Max {{ __device__ double operator()(double a, double b) const {{ return maximum_of(a, b); }} }};
struct Min {{ __device__ double operator()(double a, double b) const {{ return minimum_of(a, b); }} }};
template <class F> __device__ double combine(
    const double* values, word count, word stride, double start, double* tree, F merge) {{
    if (count == 1) return merge(start, fresh(values));
    double lane = start, loaded[16];
    word i = threadIdx.x < {LANES} ? threadIdx.x : count;
    for (; i + 15 * {LANES} < count; i += 16 * {LANES}) {{  // many under way: a billion elements have 488,282 units
        #pragma unroll
        for (int j = 0; j < 16; j++) loaded[j] = fresh(values + (i + j * {LANES}) * stride);
        #pragma unroll
        for (int j = 0; j < 16; j++) lane = merge(lane, loaded[j]);
    }}
    for (; i < count; i += {LANES}) lane = merge(lane, fresh(values + i * stride));
    return fold(lane, tree, merge);
}}
// A total: what the parameters of the optimizer add to it, those of each device in a table of their own.
__device__ double total_of(const Job& job, int label, double* tree) {{
    const double* values = job.contributions + (word)label * job.entries;
    const word next_device = (word)job.labels * job.entries;
    double lane = 0.0, loaded[16];
    word i = threadIdx.x < {LANES} ? threadIdx.x : job.entries;
    if (job.devices == 1) for (; i + 15 * {LANES} < job.entries; i += 16 * {LANES}) {{  // many under way
        #pragma unroll
        for (int j = 0; j < 16; j++) loaded[j] = fresh(values + i + j * {LANES});
        #pragma unroll
        for (int j = 0; j < 16; j++) lane += 0.0 + loaded[j];
    }}
    for (; i < job.entries; i += {LANES}) {{
        double value = 0.0;
        for (int device = 0; device < job.devices; device++) value += fresh(values + device * next_device + i);
        lane += value;
    }}
    return fold(lane, tree, Add());
}}
// True in all threads of the block that comes last of `blocks`; what the others wrote is visible then. The counter goes
// from `blocks - 1` to 0 by itself, so no store of another launch can get lost in between.
__device__ bool comes_last(unsigned* counter, unsigned blocks) {{
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {{  // its fences stand for the whole block, which the barriers put in order with it
        __threadfence();
        last = atomicInc(counter, blocks - 1) == blocks - 1;
        if (last) __threadfence();
    }}
    __syncthreads();
    return last;
}}
"""
