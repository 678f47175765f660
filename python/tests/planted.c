/* Bugs as C extensions have them. Declared by hand, so that Python's headers need not be there. */
#include <stddef.h>
#include <string.h>

void *PyMem_Malloc(size_t size);
void PyMem_Free(void *block);

/* Room for five letters, and none for the NUL that follows them. */
void overrun(void)
{
    char *name = PyMem_Malloc(5);
    strcpy(name, "Monty");
    PyMem_Free(name);
}

/* The block is given back, and written afterwards. */
void stale(void)
{
    char *volatile name = PyMem_Malloc(40);
    PyMem_Free(name);
    name[3] = 'x';
}

/* The block is forgotten. */
void *lose(void)
{
    return PyMem_Malloc(24);
}

void keep_nothing(void)
{
    PyMem_Free(PyMem_Malloc(24));
}
