/* Counts the calls of a domain, in C: a wrapper that goes on while blocks are live, and comes off again. */
#include "record.h"

#include <stdatomic.h>

struct counter {
    PyMemAllocatorEx inner;
    atomic_size_t calls;
};

static const PyMemAllocatorEx *count(void *ctx)
{
    struct counter *counter = ctx;
    atomic_fetch_add_explicit(&counter->calls, 1, memory_order_relaxed);
    return &counter->inner;
}

static void *count_malloc(void *ctx, size_t size)
{
    const PyMemAllocatorEx *inner = count(ctx);
    return inner->malloc(inner->ctx, size);
}

static void *count_calloc(void *ctx, size_t nelem, size_t elsize)
{
    const PyMemAllocatorEx *inner = count(ctx);
    return inner->calloc(inner->ctx, nelem, elsize);
}

static void *count_realloc(void *ctx, void *ptr, size_t new_size)
{
    const PyMemAllocatorEx *inner = count(ctx);
    return inner->realloc(inner->ctx, ptr, new_size);
}

static void count_free(void *ctx, void *ptr)
{
    const PyMemAllocatorEx *inner = count(ctx);
    inner->free(inner->ctx, ptr);
}

static struct counter counter;

/* The record that is to serve in the place of `inner`, which it wraps. */
PyMemAllocatorEx count_calls(PyMemAllocatorEx inner)
{
    counter.inner = inner;
    return (PyMemAllocatorEx){&counter, count_malloc, count_calloc, count_realloc, count_free};
}

/* Calls until now. */
size_t calls_counted(void)
{
    return atomic_load_explicit(&counter.calls, memory_order_relaxed);
}
