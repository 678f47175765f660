/* The record of an allocator, as in Python.h, which is to be included first where both are. */
#ifndef RECORD_H
#define RECORD_H

#include <stddef.h>

#ifndef Py_PYTHON_H
typedef struct {
    void *ctx;
    void *(*malloc)(void *ctx, size_t size);
    void *(*calloc)(void *ctx, size_t nelem, size_t elsize);
    void *(*realloc)(void *ctx, void *ptr, size_t new_size);
    void (*free)(void *ctx, void *ptr);
} PyMemAllocatorEx;
#endif

#endif
