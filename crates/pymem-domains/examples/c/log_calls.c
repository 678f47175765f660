/* Logs the calls of a domain to a file, in C. Its bytes are those of a call log, which malloc-trace makes a trace. */
#include "record.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>

enum kind { MALLOC = 1, CALLOC, REALLOC_OF_NONE, FREE, MOVING, MOVED, NOT_MOVED };

struct log {
    PyMemAllocatorEx inner;
    FILE *file;
    unsigned domain;
};

/* Numbers from 1, in the order in which threads are first seen. */
static atomic_uint threads;
static _Thread_local unsigned thread;

/* stdio locks the file for each record, and its buffer is the C library's, never the logged domain's. */
static void add(struct log *log, enum kind kind, const void *block, size_t size)
{
    if (block == NULL)
        return;
    if (thread == 0)
        thread = atomic_fetch_add_explicit(&threads, 1, memory_order_relaxed) + 1;
    uint64_t address = (uintptr_t)block;
    uint64_t call = (uint64_t)size << 18 | (uint64_t)thread << 2 | log->domain;
    fwrite((uint64_t[]){address << 4 | kind, call}, 2 * sizeof call, 1, log->file);
}

static void *log_malloc(void *ctx, size_t size)
{
    struct log *log = ctx;
    void *block = log->inner.malloc(log->inner.ctx, size);
    add(log, MALLOC, block, size);
    return block;
}

static void *log_calloc(void *ctx, size_t nelem, size_t elsize)
{
    struct log *log = ctx;
    void *block = log->inner.calloc(log->inner.ctx, nelem, elsize);
    add(log, CALLOC, block, nelem * elsize);
    return block;
}

static void *log_realloc(void *ctx, void *ptr, size_t new_size)
{
    struct log *log = ctx;
    /* Before the call: after it another thread may have the address. */
    add(log, MOVING, ptr, 0);
    void *block = log->inner.realloc(log->inner.ctx, ptr, new_size);
    if (ptr == NULL)
        add(log, REALLOC_OF_NONE, block, new_size);
    else
        add(log, block ? MOVED : NOT_MOVED, block ? block : ptr, new_size);
    return block;
}

static void log_free(void *ctx, void *ptr)
{
    struct log *log = ctx;
    add(log, FREE, ptr, 0);
    log->inner.free(log->inner.ctx, ptr);
}

static struct log log;

/* The record that is to serve domain number `domain` in the place of `inner`, which it wraps; all null when there is no file. */
PyMemAllocatorEx log_calls(PyMemAllocatorEx inner, unsigned domain, const char *path)
{
    static const char head[4096] = "PYMLOG01";
    log = (struct log){inner, fopen(path, "wb"), domain};
    if (log.file == NULL || fwrite(head, sizeof head, 1, log.file) != 1)
        return (PyMemAllocatorEx){0};
    return (PyMemAllocatorEx){&log, log_malloc, log_calloc, log_realloc, log_free};
}

/* Ends the log, once nothing calls the record any more. Returns 0 when all of it was written. */
int log_close(void)
{
    return fclose(log.file);
}
