/* Limits the memory of a domain, in C: a replacement, set before the first block, that keeps sizes before its blocks. */
#include "record.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

/* What stands before each block: as long as the strictest alignment. */
union head {
    size_t size;
    max_align_t align;
};

static size_t limit;
static atomic_size_t used;

/* Books `new` bytes in place of `old`; 0 when they are too many. */
static int book(size_t old, size_t new)
{
    size_t now = atomic_load_explicit(&used, memory_order_relaxed), then;
    do {
        if (new > limit || now - old > limit - new)
            return 0;
        then = now - old + new;
    } while (!atomic_compare_exchange_weak_explicit(&used, &now, then, memory_order_relaxed,
                                                    memory_order_relaxed));
    return 1;
}

/* Makes a block of `size` bytes, or resizes the one behind `old`. */
static void *serve(union head *old, size_t size)
{
    size_t old_size = old ? old->size : 0;
    if (size > SIZE_MAX - sizeof(union head) || !book(old_size, size))
        return NULL;
    union head *head = realloc(old, sizeof(union head) + size);
    if (head == NULL) {
        atomic_fetch_sub_explicit(&used, size - old_size, memory_order_relaxed);
        return NULL;
    }
    head->size = size;
    return head + 1;
}

static void *limited_malloc(void *ctx, size_t size)
{
    (void)ctx;
    return serve(NULL, size);
}

static void *limited_calloc(void *ctx, size_t nelem, size_t elsize)
{
    (void)ctx;
    if (elsize != 0 && nelem > SIZE_MAX / elsize)
        return NULL;
    unsigned char *block = serve(NULL, nelem * elsize);
    for (size_t i = 0; block != NULL && i < nelem * elsize; i++)
        block[i] = 0;
    return block;
}

static void *limited_realloc(void *ctx, void *ptr, size_t new_size)
{
    (void)ctx;
    return serve(ptr ? (union head *)ptr - 1 : NULL, new_size);
}

static void limited_free(void *ctx, void *ptr)
{
    (void)ctx;
    if (ptr == NULL)
        return;
    union head *head = (union head *)ptr - 1;
    atomic_fetch_sub_explicit(&used, head->size, memory_order_relaxed);
    free(head);
}

/* The record that is to serve in the place of another one, at most `bytes` bytes at a time. */
PyMemAllocatorEx limit_memory(size_t bytes)
{
    limit = bytes;
    return (PyMemAllocatorEx){NULL, limited_malloc, limited_calloc, limited_realloc, limited_free};
}

/* Bytes of live blocks. */
size_t memory_used(void)
{
    return atomic_load_explicit(&used, memory_order_relaxed);
}
