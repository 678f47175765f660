/* Injects a failure at the n-th allocation of a domain, in C: a wrapper that answers null from there on. */
#include "record.h"

#include <stdatomic.h>
#include <stdint.h>

struct failer {
    PyMemAllocatorEx inner;
    atomic_size_t calls;
    atomic_size_t first;
};

/* What serves this allocation; null when it is to fail. */
static const PyMemAllocatorEx *next(void *ctx)
{
    struct failer *failer = ctx;
    size_t number = atomic_fetch_add_explicit(&failer->calls, 1, memory_order_relaxed);
    size_t first = atomic_load_explicit(&failer->first, memory_order_relaxed);
    return number < first ? &failer->inner : NULL;
}

static void *fail_malloc(void *ctx, size_t size)
{
    const PyMemAllocatorEx *inner = next(ctx);
    return inner ? inner->malloc(inner->ctx, size) : NULL;
}

static void *fail_calloc(void *ctx, size_t nelem, size_t elsize)
{
    const PyMemAllocatorEx *inner = next(ctx);
    return inner ? inner->calloc(inner->ctx, nelem, elsize) : NULL;
}

static void *fail_realloc(void *ctx, void *ptr, size_t new_size)
{
    const PyMemAllocatorEx *inner = next(ctx);
    return inner ? inner->realloc(inner->ctx, ptr, new_size) : NULL;
}

static void fail_free(void *ctx, void *ptr)
{
    const PyMemAllocatorEx *inner = &((struct failer *)ctx)->inner;
    inner->free(inner->ctx, ptr);
}

static struct failer failer = {.first = SIZE_MAX};

/* The record that is to serve in the place of `inner`, which it wraps. It fails when it is told to. */
PyMemAllocatorEx fail_at(PyMemAllocatorEx inner)
{
    failer.inner = inner;
    return (PyMemAllocatorEx){&failer, fail_malloc, fail_calloc, fail_realloc, fail_free};
}

/* Counts from zero again: the next `first` allocations go through, and every later one fails. */
void fail_from(size_t first)
{
    atomic_store_explicit(&failer.first, first, memory_order_relaxed);
    atomic_store_explicit(&failer.calls, 0, memory_order_relaxed);
}

/* Allocations since then, failed ones included. */
size_t allocations_tried(void)
{
    return atomic_load_explicit(&failer.calls, memory_order_relaxed);
}
