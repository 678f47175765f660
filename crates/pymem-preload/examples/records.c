/* Allocates by the record that serves the obj domain, in a program without Python:
 *
 *     cc records.c $(pkg-config --cflags --libs pymem) -o records
 */
#include <pymem.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
    PyMemAllocatorEx obj;
    pymem_get_allocator(2, &obj);

    static const char text[] = "Hello, pymem";
    char *block = obj.malloc(obj.ctx, sizeof text);
    if (block == NULL)
        return 1;
    memcpy(block, text, sizeof text);
    printf("%zu bytes from pymem: %s\n", sizeof text, block);
    obj.free(obj.ctx, block);

    /* With an interpreter in the process, before Py_Initialize, this would be 0: installed. */
    printf("no interpreter to set up: %d\n", pymem_setup("pymalloc"));
    return 0;
}
